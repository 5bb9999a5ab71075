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

// Timer is a pending AfterFunc.
type Timer interface {
	// Stop reports whether it prevented the call.
	Stop() bool
}
