//go:build !linux

package seam

import "time"

// bootTime is Go's own clock: it goes on while the machine sleeps here, or there
// is none that does.
func bootTime() time.Duration { return time.Since(processStart) }
