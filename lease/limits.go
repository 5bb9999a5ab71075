package lease

import (
	"time"

	"github.com/baton-cluster/baton/wire"
)

const (
	// TDefault is how long a lease lasts unless the cluster's record says
	// otherwise: long enough that a busy CPU costs none, and about as long as a
	// failover waits.
	TDefault = wire.LeaseUSDefault * time.Microsecond
	// TMin and TMax bound T. TMax is compiled in, because a server that restarts
	// knows neither what it promised nor what T was then (L3). A build with a
	// lower one must never meet promises of a build with a higher one.
	TMin = wire.LeaseUSMin * time.Microsecond
	TMax = wire.LeaseUSMax * time.Microsecond

	// ρ = rhoNum/rhoDen bounds the relative rate of any two clocks. Time daemons
	// slew a clock by up to 500 ppm (the kernel's own loop) or 83,333 ppm
	// (chrony's default while it works off an offset): two clocks that slew
	// against each other part by 18 %. It costs no more than that part of a
	// lease's length.
	rhoNum, rhoDen = 1, 5

	// Margin covers what clocks tell late: a coarse clock advances by up to 4 ms
	// at once, at the server that notes a receipt and at the worker that serves.
	Margin = 10 * time.Millisecond

	// RenewalsPerLease is how often a worker renews in T. Two renewals may be
	// lost before a lease does.
	RenewalsPerLease = 4
	// SilenceLeases: after so many T without a leader that is in touch with a
	// majority, a worker renews no more (L6). Leases ride through elections that
	// are shorter.
	SilenceLeases = 2
)

// Shrink is how much of d, told by another clock, has surely not passed there
// before it has passed here.
func Shrink(d time.Duration) time.Duration { return d * rhoDen / (rhoDen + rhoNum) }

// Stretch is how long to wait here until d has surely passed by another clock.
func Stretch(d time.Duration) time.Duration {
	return (d*(rhoDen+rhoNum) + rhoDen - 1) / rhoDen
}

// VoterWait is how long after it has applied a change of the voters a leader
// appends no fence (L4).
const VoterWait = TMax * (rhoDen + rhoNum) / rhoDen
