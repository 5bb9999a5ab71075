package seam

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bootTime is CLOCK_BOOTTIME. It is read by a raw call, as it never blocks.
// (Go's own clock is CLOCK_MONOTONIC, which stops while the machine sleeps.)
func bootTime() time.Duration {
	var ts unix.Timespec
	if _, _, err := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&ts)), 0); err != 0 {
		panic("seam: this kernel has no boot-time clock: " + err.Error())
	}
	return time.Duration(ts.Nano())
}
