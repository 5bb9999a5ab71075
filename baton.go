// Package baton keeps live client sessions alive while the servers under them
// come and go. It is a session store cluster: every session has one owner node,
// decided by Raft; its state is committed before it is acknowledged; gossip
// notices dead workers; and the leader moves live QUIC sessions between nodes
// with no request lost, none applied twice, and never two owners.
//
// A server program makes a Mux, opens a Node with it and serves. A client
// program dials any nodes, opens or resumes a Session, and calls. An operator's
// program uses Admin. ARCHITECTURE.md tells how it works inside.
//
// A type that is a name of another package's (Tx = worker.Tx) has its methods and
// fields documented there: go doc github.com/baton-cluster/baton/worker.Tx.
package baton

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/baton-cluster/baton/cluster"
	"github.com/baton-cluster/baton/lease"
	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
	"github.com/baton-cluster/baton/worker"
)

// Error is every typed refusal. Compare codes: errors.Is with one of the Err
// values, or CodeOf. Never compare the text.
type Error = wire.Error

// Code names an outcome and never changes meaning.
type Code = wire.Code

// Errors that programs branch on.
var (
	ErrUnknownSession   = &Error{Code: wire.Code_UNKNOWN_SESSION}
	ErrSessionExists    = &Error{Code: wire.Code_SESSION_EXISTS}
	ErrSessionClosed    = &Error{Code: wire.Code_SESSION_CLOSED}
	ErrSessionExpired   = &Error{Code: wire.Code_SESSION_EXPIRED}
	ErrBadSecret        = &Error{Code: wire.Code_BAD_SECRET}
	ErrDisplaced        = &Error{Code: wire.Code_DISPLACED}
	ErrDeadlineExceeded = &Error{Code: wire.Code_DEADLINE_EXCEEDED}
	ErrUnavailable      = &Error{Code: wire.Code_UNAVAILABLE}
	ErrStateTooLarge    = &Error{Code: wire.Code_STATE_TOO_LARGE}
	ErrValueTooLarge    = &Error{Code: wire.Code_VALUE_TOO_LARGE}
	// ErrStreamLost and ErrStreamMoved end byte streams that could not go along
	// with their session.
	ErrStreamLost  = &Error{Code: wire.Code_STREAM_LOST}
	ErrStreamMoved = &Error{Code: wire.Code_STREAM_MOVED}
)

// CodeOf returns the code of the first Error in err's chain, OK for nil and
// INTERNAL for a chain without one.
func CodeOf(err error) Code { return wire.CodeOf(err) }

// Errorf makes a typed error, for handlers that refuse: the client gets code
// and message. HANDLER_ERROR is what an error without a code becomes.
func Errorf(code Code, format string, args ...any) error { return wire.Errorf(code, format, args...) }

// What handlers work with.
type (
	// Mux maps methods to handlers: Handle for calls, HandleRead for queries,
	// HandleStream for byte streams, and OnFreeze and OnResume for what the
	// application holds of a session in memory. NewMux makes one, KV one with the
	// key→value methods. Register everything before the node opens, and the same on
	// all nodes.
	Mux = worker.Mux
	// Handler runs one call: func(tx *Tx, payload []byte) ([]byte, error). What it
	// writes through tx commits together with the reply, once, or not at all; after
	// an error nothing is written.
	Handler = worker.Handler
	// ReadHandler runs one query: func(v *View, payload []byte) ([]byte, error). It
	// cannot write, and may run beside other handlers of the session.
	ReadHandler = worker.ReadHandler
	// Tx is a Handler's view of its session: Get, Put, Delete, CompareAndSet and Incr
	// of keys, Push to the session's clients, Session, Fence and Context.
	Tx = worker.Tx
	// View is a ReadHandler's view of its session, one version of the state: Get,
	// Session, Fence and Context.
	View = worker.View
	// Fence names a request for other systems: Session and Epoch as a fencing token,
	// Session, Client and Seq as an idempotency key.
	Fence = worker.Fence

	// StreamHandler serves one byte stream until it returns: func(st *ServerStream)
	// error. nil is the client's io.EOF.
	StreamHandler = worker.StreamHandler
	// StreamOption is an option of Mux.HandleStream: Resumable.
	StreamOption = worker.StreamOption
	// ServerStream is a StreamHandler's end of its stream: Read, Write, RecvMessage and
	// SendMessage, Ack of what was dealt with, Commit to the session's state, Resumed
	// after a move, Context, Session and Fence.
	ServerStream = worker.ServerStream
)

// Resumable makes the streams of a method go on across planned moves; see
// Mux.HandleStream.
func Resumable() StreamOption { return worker.Resumable() }

// NewMux makes an empty Mux.
func NewMux() *Mux { return worker.NewMux() }

// Config of a Node. Name, Data, PKI, UserAddr and MgmtAddr are required, and
// Join or, for a cluster of one, an Expect of 1.
type Config struct {
	// Name is the node's name, unique in the cluster; its certificate in PKI is
	// for that name. PKIIssue tells what names there can be.
	Name string
	// Data is the node's own directory; it is made if need be.
	Data string
	// PKI is the directory that `baton pki` makes.
	PKI string
	// UserAddr (UDP) and MgmtAddr (TCP and UDP) are host:port to listen on. Port
	// 0 picks a free one.
	UserAddr, MgmtAddr string
	// HTTPAddr is host:port of the HTTP port, with health, metrics and profiles;
	// empty: none. It asks nobody who they are, so give it a loopback address, or
	// one that only operators reach.
	HTTPAddr string
	// AdvertiseHost is the host that others reach this node by; default: the
	// host of MgmtAddr. AdvertiseUser and AdvertiseMgmt are whole host:port
	// addresses, for nodes behind a forwarder.
	AdvertiseHost, AdvertiseUser, AdvertiseMgmt string
	// Join holds management addresses of other nodes.
	Join []string
	// Expect is how many empty nodes form a new cluster together; above 1 they find
	// each other by Join. 0: this node only joins one.
	Expect int
	// NonVoter: this node works but does not vote.
	NonVoter bool
	// TargetVoters is how many servers vote while this node leads; further ones
	// follow, as spares. 0: three, or Expect if that is more.
	TargetVoters int
	// ReplaceDeadAfter is how long a voter must be dead before a spare gets its
	// vote, while this node leads. 0: five minutes; negative: never.
	ReplaceDeadAfter time.Duration
	// ConfirmedReads has this node ask a majority of the voters to confirm every
	// query, instead of answering under its lease. Leases rest on clocks whose rates
	// differ by a bounded part, and on a boot-time clock that does not stop. Where a
	// hypervisor suspends, migrates or clones machines without their noticing, set
	// it on every node.
	ConfirmedReads bool
	// Zone and Capacity (relative weight, 0 counts as 1) guide placement.
	Zone     string
	Capacity uint64
	// Placement is how this node, while it leads, chooses targets: bounded_load
	// (default), least_loaded or zone_spread.
	Placement string
	// ConfirmMove, where set, is asked before a session moves off or onto this
	// node, on any goroutine, and should answer within a second: no answer puts the
	// move off. It is not asked in an emergency, nor after a crash.
	ConfirmMove func(ctx context.Context, m MoveOffer) Confirmation
	// Confirm says which moves and jobs wait for an operator before they begin,
	// while this node leads; give all nodes the same. Each rule is "manual" or
	// "auto" and conditions: reason=R[|R…], priority=N[-N], by=NAME (a * at its end
	// stands for the rest). The first rule that fits decides, without one nobody is
	// asked. A drain's reason is planned_maintenance, a rebalance's
	// load_balancing; emergencies, and the drain of a node that shuts down, wait for
	// nobody. ConfirmWithin, 1 s to 10 min, default 5 min, is how long is waited.
	Confirm       []string
	ConfirmWithin time.Duration
	approval      migrate.Approval
	tail          *logTail // of its log
	// OnKill, where set, ends the process at once: an operator rehearses a failover
	// (Admin.Kill). It must not return. Without it the node refuses.
	OnKill func()
	// Profile is local, lan (default) or wan.
	Profile string
	// Lease is how long a worker may serve reads on the word of a majority: a
	// failover waits for it to run out. 200 ms to 5 s; 0: 1 s, and 3 s in profile
	// wan. The first leader puts it into the cluster's record; later values are
	// ignored (see Admin.SetLease).
	Lease time.Duration
	// ByteBudget bounds what all sessions hold together, in bytes. The first
	// leader puts it into the cluster's record; later values are ignored.
	ByteBudget uint64
	// Mux holds the application; nil: KV().
	Mux *Mux
	// Version is shown in status.
	Version string
	// Log is quiet unless set.
	Log *slog.Logger
	// Network and Clock default to the operating system's.
	Network seam.Network
	Clock   seam.Clock
	// LogStore keeps Raft's log: "wal" (segment files, one sync an append) or
	// "bolt" (one bbolt file, two syncs). Empty: what Data already holds, and wal
	// where that is nothing. Another than Data holds is refused with BAD_REQUEST.
	LogStore string
	// Disk replaces the files under Data; LogStore is then ignored.
	Disk cluster.Disk
}

// nameBytesMax bounds a node's name, as pki and membership do.
const nameBytesMax = 63

// check returns a copy with defaults filled in, or all faults at once.
func (c Config) check() (Config, error) {
	var faults []string
	need := func(ok bool, fault string) {
		if !ok {
			faults = append(faults, fault)
		}
	}
	need(c.Name != "" && len(c.Name) <= nameBytesMax, fmt.Sprintf("Name must have 1 to %d bytes", nameBytesMax))
	need(c.Data != "", "Data must name a directory")
	need(c.PKI != "", "PKI must name the directory that `baton pki init` made")
	need(isHostPort(c.UserAddr), "UserAddr must be host:port")
	need(isHostPort(c.MgmtAddr), "MgmtAddr must be host:port")
	need(c.HTTPAddr == "" || isHostPort(c.HTTPAddr), "HTTPAddr must be host:port")
	need(c.AdvertiseUser == "" || isHostPort(c.AdvertiseUser), "AdvertiseUser must be host:port")
	need(c.AdvertiseMgmt == "" || isHostPort(c.AdvertiseMgmt), "AdvertiseMgmt must be host:port")
	need(c.AdvertiseHost != "" || c.AdvertiseMgmt != "" && c.AdvertiseUser != "" || !listensOnAll(c.MgmtAddr),
		"AdvertiseHost is needed, as MgmtAddr listens on all addresses: name the host that others reach this node by")
	need(c.Expect > 0 || len(c.Join) > 0, "Expect or Join is needed: to form a cluster, or to find one")
	need(c.Expect <= 1 || len(c.Join) > 0, "Expect above 1 needs Join")
	need(c.TargetVoters >= 0, "TargetVoters must not be negative")
	need(c.Expect >= 0, "Expect must not be negative")
	need(c.Lease == 0 || c.Lease >= lease.TMin && c.Lease <= lease.TMax, fmt.Sprintf("Lease must be %v to %v", lease.TMin, lease.TMax))
	_, policyErr := migrate.PolicyOf(c.Placement)
	need(policyErr == nil, "Placement must be bounded_load, least_loaded or zone_spread")
	approval, ruleErr := migrate.NewApproval(c.Confirm, c.ConfirmWithin)
	need(ruleErr == nil, fmt.Sprintf("Confirm: %v", ruleErr))
	c.approval = approval
	need(cluster.LogStore(c.LogStore).Valid(), "LogStore must be wal, bolt or empty")
	for _, a := range c.Join {
		need(isHostPort(a), "Join holds "+strconv.Quote(a)+", which is not host:port")
	}
	if len(faults) > 0 {
		return c, wire.Errorf(wire.Code_BAD_REQUEST, "the node's configuration is wrong: %s", strings.Join(faults, "; "))
	}
	c.setDefaults()
	return c, nil
}

func (c *Config) setDefaults() {
	if c.Mux == nil {
		c.Mux = KV()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.tail = &logTail{}
	c.Log = slog.New(newTailHandler(c.Log.Handler(), c.tail)).With("node", c.Name)
	if c.Network == nil {
		c.Network = seam.OSNetwork{LocalIP: localIP(c.MgmtAddr)}
	}
	if c.Clock == nil {
		c.Clock = seam.OSClock{}
	}
	if c.Disk == nil {
		c.Disk = cluster.FileDisk{Store: cluster.LogStore(c.LogStore)}
	}
	if c.AdvertiseHost == "" {
		c.AdvertiseHost, _, _ = net.SplitHostPort(c.MgmtAddr)
	}
	if c.Version == "" {
		c.Version = "dev"
	}
}

// localIP is the address to dial from: that of a node that listens on a
// specific one, so that peers see where a connection comes from.
func localIP(addr string) net.IP {
	host, _, _ := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	if ip == nil || ip.IsUnspecified() {
		return nil
	}
	return ip
}

func listensOnAll(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return ip != nil && ip.IsUnspecified()
}

func isHostPort(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n <= 65535
}

// CertInfo is one certificate of a PKI directory; see PKIShow.
type CertInfo = pki.CertInfo

// PKIInit makes a new authority, cluster key and operator certificate in dir.
func PKIInit(dir string) error { return pki.Init(dir) }

// PKIIssue makes the certificate of node name, for hosts, in dir. A name has 1 to
// 63 letters, digits, dots, dashes and underscores, and begins with a letter or
// digit; ca, admin and cluster are taken.
func PKIIssue(dir, name string, hosts []string) error { return pki.Issue(dir, name, hosts) }

// PKIShow lists the certificates in dir.
func PKIShow(dir string) ([]CertInfo, error) { return pki.Show(dir) }
