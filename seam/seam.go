// Package seam is where the outside world comes in: network and time, each
// through one interface, so that the same code runs on an operating system, in
// a simulation, and under fault injection. (The disk's seam is hashicorp/raft's
// store interfaces; see cluster.Disk.)
package seam

import (
	"context"
	"net"
	"time"
)

// Network listens and dials. Addresses are host:port.
type Network interface {
	ListenPacket(addr string) (net.PacketConn, error)
	Listen(addr string) (net.Listener, error)
	Dial(ctx context.Context, addr string) (net.Conn, error)
}

// Clock tells elapsed time and wakes up. Now is only ever compared with other
// values of the same clock; Wall is shown to people and decides nothing.
type Clock interface {
	Now() time.Duration
	Wall() time.Time
	// AfterFunc runs f on its own goroutine after d, unless stopped before.
	AfterFunc(d time.Duration, f func()) Timer
}

// BootClock is a Clock that also counts the time that the machine slept, during
// which its timers stand still. Who wraps a BootClock and changes Now changes
// Boot as well.
type BootClock interface {
	Clock
	Boot() time.Duration
}

// Boot is elapsed time that goes on while the machine sleeps, for deadlines that
// others count on; Now where the clock does not tell. It costs a system call, so
// what only paces this process's own work uses Now.
func Boot(c Clock) time.Duration {
	if b, ok := c.(BootClock); ok {
		return b.Boot()
	}
	return c.Now()
}

// Timer is a pending AfterFunc.
type Timer interface {
	// Stop reports whether it prevented the call.
	Stop() bool
}
