package seam

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestBootTime: the raw call reads the kernel's clock of the time since the boot.
func TestBootTime(t *testing.T) {
	read := func() int64 {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
			t.Fatal(err)
		}
		return ts.Nano()
	}
	for range 1000 {
		before, got, after := read(), bootTime().Nanoseconds(), read()
		if got < before || got > after {
			t.Fatalf("%d, read between %d and %d", got, before, after)
		}
	}
}
