package sim

import "time"

// afterFunc is time.AfterFunc, but never at once. A timer of a bubble that is due
// when it is made runs on the spot, as Go 1.26 has it, and under the race detector
// that crashes on a processor that has run no timer before.
func afterFunc(d time.Duration, f func()) *time.Timer {
	return time.AfterFunc(max(d, 1), f)
}
