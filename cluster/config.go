package cluster

import (
	"context"
	"log/slog"
	"net"
	"time"

	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// Config is what Open needs.
type Config struct {
	// ID, Name and Dir come from the locked data directory (LockDir, Identity).
	ID, Name, Dir string
	// Advertise is the management host:port at which other nodes reach this one.
	Advertise string
	// Expect is how many empty nodes form a new cluster together; 0: this node
	// only ever joins. A single node (1, with no Join) forms one by itself.
	Expect int
	// Join holds management addresses of other nodes; its own is ignored.
	Join []string
	// Voter: this node may vote. Beyond the cluster's need it follows anyway.
	Voter bool
	// TargetVoters is how many servers vote while this node leads: further ones
	// follow, and get a vote when one is missing. 0: VotersMin, or Expect if that is
	// more.
	TargetVoters int
	// ReplaceAfter is how long a voter must be dead before another server gets its
	// vote. 0: ReplaceAfterDefault; negative: never.
	ReplaceAfter time.Duration
	// Profile picks the timings; Timings overrides single ones.
	Profile Profile
	Timings Timings

	Network seam.Network // not used by the package itself; RaftDial and Peers dial
	Clock   seam.Clock   // nil: the operating system's
	// Mgmt hands over inbound raft connections, Peers makes calls and Services
	// answers them. Open registers its handlers: serve afterwards.
	Mgmt     *rpcnet.Mgmt
	Peers    *rpcnet.Peers
	Services *rpcnet.Services
	// RaftDial makes a TLS connection to a management address, with ALPNRaft.
	RaftDial func(ctx context.Context, addr string) (net.Conn, error)
	// Alive is gossip's opinion of a node id; nil: no opinion.
	Alive func(id string) (alive, known bool)
	Disk  Disk // nil: FileDisk{}
	// ByteBudget bounds what all sessions hold together; the first leader puts
	// it into the cluster's record. 0: wire.ByteBudgetDefault.
	ByteBudget uint64
	// Birth returns the commands that go into the log with the cluster's name; nil:
	// none.
	Birth func(clusterID []byte) ([]*wire.Command, error)
	// Lease is how long leases last; the first leader puts it into the cluster's
	// record. 0: the default.
	Lease time.Duration
	// Lead runs whenever this node leads, as WhileLeader does; nil: nothing.
	Lead func(ctx context.Context)
	// OnMute is called when this node falls silent because its disk hangs: what is
	// proposed here may not come back until the disk does. It must not block. nil:
	// nothing.
	OnMute func()
	// Log is quiet (nil: discard). OnFatal is called at most once, on a
	// goroutine of its own, when this node must stop: its disk hangs or fails, or
	// its state belongs to another cluster. The process should exit. nil: panic.
	Log     *slog.Logger
	OnFatal func(error)
}

// check copies the config, fills defaults and reports all faults at once.
func (c Config) check() (Config, error) {
	var faults []string
	need := func(ok bool, fault string) {
		if !ok {
			faults = append(faults, fault)
		}
	}
	need(c.ID != "", "ID is empty: take it from LockDir(dir).Identity(name)")
	need(c.Name != "", "Name is empty")
	need(c.Dir != "", "Dir is empty")
	_, port, err := net.SplitHostPort(c.Advertise)
	need(err == nil && port != "" && port != "0", "Advertise must be host:port as other nodes reach it")
	need(c.Expect >= 0, "Expect must not be negative")
	need(c.Expect > 0 || len(c.Join) > 0, "either Expect or Join is needed")
	need(c.TargetVoters >= 0, "TargetVoters must not be negative")
	need(c.Mgmt != nil, "Mgmt is missing")
	need(c.Peers != nil, "Peers is missing")
	need(c.Services != nil, "Services is missing")
	need(c.RaftDial != nil, "RaftDial is missing")
	t, err := c.Profile.Timings()
	need(err == nil, wire.CodeOf(err).Label()+" profile: use local, lan or wan")
	c.Timings = c.Timings.or(t)
	need(c.Timings.Lease <= c.Timings.Heartbeat, "Timings.Lease must be at most Heartbeat")
	need(c.Timings.Election >= c.Timings.Heartbeat, "Timings.Election must be at least Heartbeat")
	if len(faults) > 0 {
		msg := "the cluster's configuration is wrong"
		for _, f := range faults {
			msg += "; " + f
		}
		return c, wire.Errorf(wire.Code_BAD_REQUEST, "%s", msg)
	}
	if c.TargetVoters == 0 {
		c.TargetVoters = max(VotersMin, c.Expect)
	}
	if c.ReplaceAfter == 0 {
		c.ReplaceAfter = ReplaceAfterDefault
	}
	if c.Clock == nil {
		c.Clock = seam.OSClock{}
	}
	if c.Disk == nil {
		c.Disk = FileDisk{}
	}
	if c.ByteBudget == 0 {
		c.ByteBudget = wire.ByteBudgetDefault
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.OnFatal == nil {
		c.OnFatal = func(err error) { panic(err) }
	}
	return c, nil
}
