package seam

import (
	"time"

	"golang.org/x/sys/unix"
)

// bootTime is CLOCK_BOOTTIME. It is read by a raw call, as it never blocks.
// (Go's own clock is CLOCK_MONOTONIC, which stops while the machine sleeps.)
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("seam: this kernel has no boot-time clock: " + err.Error())
	}
	return time.Duration(ts.Nano())
}
