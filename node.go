package baton

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/baton-cluster/baton/cluster"
	"github.com/baton-cluster/baton/membership"
	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
	"github.com/baton-cluster/baton/worker"
)

// purposeGossip is that of the one key that is not of the ring: gossip comes
// before everything else.
const purposeGossip = "gossip"

// Node is one process of the cluster: a server that votes and a worker that
// owns sessions.
type Node struct {
	cfg      Config
	identity *pki.Identity
	id       string

	lock     *cluster.DirLock
	mgmt     *rpcnet.Mgmt
	services *rpcnet.Services // for nodes
	admin    *rpcnet.Peers    // for operators
	peers    *rpcnet.Peers
	members  *membership.Members
	cluster  *cluster.Cluster
	worker   *worker.Worker
	opened   atomic.Pointer[cluster.Cluster] // cluster, for those who may ask before it is there
	director *migrate.Director
	server   *rpcnet.Server
	keys     nodeKeys
	backups  backups
	userPort net.PacketConn // bound; closed by server once there is one
	events   *eventQueue
	doubt    *doubt
	// processors that there were when the node was opened: later there may be fewer
	// for want of work.
	processors int
	renewer    *renewer

	http *http.Server // nil: none

	userAddr, mgmtAddr string // as advertised
	httpAddr           string

	ctx    context.Context
	cancel context.CancelFunc
	jobs   sync.WaitGroup
	fenced chan struct{}
	serves atomic.Bool // registered: all parts are up
	// leaving: this node gives up its place; left: it has.
	leaving, left atomic.Bool
	stopping      atomic.Bool // it shuts down
	asked         sync.Map    // sessions of which the application owes an answer: see askApp

	closing atomic.Bool
	stopped chan struct{}
	fault   atomic.Pointer[error]
}

// Open starts a node and returns when it serves: it has found or formed its
// cluster and registered its worker. If ctx ends before, the node is closed.
// Faults are *Error: BAD_REQUEST (configuration), NOT_INITIALISED and
// NOT_AUTHORISED (a file of PKI is missing, or of no use), UNAVAILABLE (a port or
// the data directory is taken; no cluster in time), NAME_IN_USE, WRONG_CLUSTER,
// WRONG_VERSION, PREDECESSOR_ALIVE (the data directory is a copy, and its original
// runs), ID_USED (the node has left its cluster, or has lost its data),
// KEYS_UNREADABLE (PKI and Data are of two clusters), SNAPSHOT_BAD, INTERNAL (the
// data cannot be read).
func Open(ctx context.Context, cfg Config) (*Node, error) {
	cfg, err := cfg.check()
	if err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, fenced: make(chan struct{}, 1), stopped: make(chan struct{}), services: rpcnet.NewServices()}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.backups.n = n
	if err := n.start(ctx); err != nil {
		_ = n.Close()
		if f := n.Err(); f != nil {
			err = f // the fault that stopped it says more than what it broke
		}
		return nil, err
	}
	return n, nil
}

// start brings the parts up, each after what it needs.
func (n *Node) start(ctx context.Context) error {
	steps := []func(context.Context) error{
		n.openIdentity,   // who are we: certificate, key, data directory, id
		n.openHTTP,       // health can be asked for from here on
		n.openManagement, // bind the management port before anyone is told of it
		n.seekOriginal,   // a copied data directory must not speak beside its original
		n.openMembership, // gossip answers from the first moment on
		n.openCluster,    // raft, and with it the replicated state
		n.openWorker,     // the owner's side, not serving yet
		n.openUserPort,   // bind early: a port that cannot be had is told at once
		n.joinCluster,    // find or form the cluster
		n.serveUserPort,  // with the cluster's keys; before registering, as what is registered is dialled
		n.register,       // get an incarnation: from here on sessions are served
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) openIdentity(context.Context) (err error) {
	if n.identity, err = pki.Load(n.cfg.PKI, n.cfg.Name); err != nil {
		return err
	}
	n.spawn(n.watchCertificate)
	if n.lock, err = cluster.LockDir(n.cfg.Data); err != nil {
		return err
	}
	who, err := n.lock.Identity(n.cfg.Name)
	n.id = who.ID
	return err
}

func (n *Node) openManagement(context.Context) (err error) {
	n.mgmt, err = rpcnet.ListenMgmt(rpcnet.MgmtConfig{
		Network: n.cfg.Network, Clock: n.cfg.Clock, Addr: n.cfg.MgmtAddr, Log: n.cfg.Log,
		TLS: n.identity.MgmtServer(rpcnet.ALPNRaft, rpcnet.ALPNGossip, rpcnet.ALPNPeer, rpcnet.ALPNAdmin),
	})
	if err != nil {
		return err
	}
	n.mgmtAddr = advertised(n.cfg.AdvertiseMgmt, n.cfg.AdvertiseHost, n.mgmt.Addr())
	n.peers = rpcnet.NewPeers(rpcnet.PeerConfig{
		Self: n.id, ClusterID: n.clusterID, Services: n.services, Network: n.cfg.Network, Clock: n.cfg.Clock,
		TLS: n.identity.PeerClient(rpcnet.ALPNPeer), ALPN: rpcnet.ALPNPeer, Identify: identify, Log: n.cfg.Log,
	})
	admin := rpcnet.NewServices()
	n.serveAdmin(admin)
	n.admin = rpcnet.NewPeers(rpcnet.PeerConfig{
		Self: n.id, ClusterID: n.clusterID, Services: admin, Network: n.cfg.Network, Clock: n.cfg.Clock,
		TLS: n.identity.PeerClient(rpcnet.ALPNAdmin), ALPN: rpcnet.ALPNAdmin, Identify: identify, Log: n.cfg.Log,
	})
	n.mgmt.Handle(rpcnet.ALPNPeer, n.peers.Serve)
	n.mgmt.Handle(rpcnet.ALPNAdmin, n.admin.Serve)
	n.mgmt.Handle(rpcnet.ALPNEnrol, rpcnet.NewEnrolment(n.serveEnrol).Serve)
	return nil
}

func identify(cs tls.ConnectionState) (role, name string) {
	r, name := pki.RoleOf(cs)
	return string(r), name
}

// advertised is the host:port that others are told: all of it given, or the
// host given and the port that was bound.
func advertised(whole, host string, bound net.Addr) string {
	if whole != "" {
		return whole
	}
	_, port, _ := net.SplitHostPort(bound.String())
	return net.JoinHostPort(host, port)
}

func (n *Node) openMembership(context.Context) error {
	timings, err := membership.ProfileNamed(n.profile())
	if err != nil {
		return err
	}
	packet, err := n.cfg.Network.ListenPacket(n.mgmt.Addr().String())
	if err != nil {
		return wire.Errorf(wire.Code_UNAVAILABLE, "the management port %v cannot be had for UDP: %v", n.mgmt.Addr(), err)
	}
	n.members, err = membership.New(membership.Config{
		ID: n.id, Name: n.cfg.Name, Network: n.cfg.Network, Clock: n.cfg.Clock, Packet: packet, Advertise: n.mgmtAddr,
		Key: n.identity.ClusterKey(purposeGossip), Dial: n.dialGossip,
		ClusterID: n.clusterID, Profile: timings, Log: n.cfg.Log, OnChange: n.nudge,
	})
	if err != nil {
		_ = packet.Close()
		return err
	}
	n.mgmt.Handle(rpcnet.ALPNGossip, n.members.Handle)
	n.doubt, n.processors = newDoubt(n.cfg.Clock, n.members.Alive), runtime.GOMAXPROCS(0)
	return nil
}

func (n *Node) profile() string {
	if n.cfg.Profile == "" {
		return string(cluster.ProfileLAN)
	}
	return n.cfg.Profile
}

func (n *Node) dialGossip(ctx context.Context, addr string) (net.Conn, error) {
	return n.dialTLS(ctx, addr, rpcnet.ALPNGossip)
}

func (n *Node) dialRaft(ctx context.Context, addr string) (net.Conn, error) {
	return n.dialTLS(ctx, addr, rpcnet.ALPNRaft)
}

func (n *Node) dialTLS(ctx context.Context, addr, alpn string) (net.Conn, error) {
	raw, err := n.cfg.Network.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	c := rpcnet.CarrierOf(n.cfg.Network).SecureClient(raw, n.identity.PeerClient(alpn))
	if err := c.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return c, nil
}

func (n *Node) openCluster(ctx context.Context) (err error) {
	n.director = migrate.NewDirector(migrate.DirectorConfig{
		View:    func(fn func(*store.Store)) { n.cluster.FSM().View(fn) },
		Propose: func(cmds []*wire.Command, done func([]*wire.Result, error)) { n.cluster.Propose(cmds, done) },
		NowUS:   func() uint64 { return n.cluster.LogTimeUS() },
		Clock:   n.cfg.Clock, Rand: rand.Reader, ClusterID: n.clusterID, Self: n.id,
		Alive: n.doubt.alive, Call: directorCalls{n}, Approval: n.cfg.approval, Fencing: fencing{n}, Log: n.cfg.Log,
		Tunables: migrate.Tunables{Placement: n.placement()},
	})
	n.cluster, err = cluster.Open(ctx, cluster.Config{
		ID: n.id, Name: n.cfg.Name, Dir: n.cfg.Data, Advertise: n.mgmtAddr, Expect: n.cfg.Expect, Join: n.cfg.Join,
		TargetVoters: n.cfg.TargetVoters, ReplaceAfter: n.cfg.ReplaceDeadAfter,
		Voter: !n.cfg.NonVoter, Profile: cluster.Profile(n.profile()), Network: n.cfg.Network, Clock: n.cfg.Clock,
		Mgmt: n.mgmt, Peers: n.peers, Services: n.services, RaftDial: n.dialRaft, Alive: n.members.Alive,
		Disk: n.cfg.Disk, ByteBudget: n.cfg.ByteBudget, Lease: n.cfg.askedLease(), Birth: n.birth, Log: n.cfg.Log, OnFatal: n.fail, OnMute: n.muted,
	})
	if err != nil {
		return err
	}
	n.opened.Store(n.cluster)
	return nil
}

func (n *Node) placement() wire.Placement {
	policy, _ := migrate.PolicyOf(n.cfg.Placement) // checked with the configuration
	return policy
}

func (n *Node) openWorker(context.Context) error {
	if err := n.adoptKeys(); err != nil { // of the snapshot, if there is one
		return err
	}
	timings, err := cluster.Profile(n.profile()).Timings()
	if err != nil {
		return err
	}
	n.cfg.Mux.LogTo(n.cfg.Log)
	n.worker = worker.New(worker.Config{
		ID: n.id, Self: n.self, ClusterID: n.clusterID, Log: n.cluster, View: n.cluster.FSM().View, Peers: workerCalls{n},
		App: n.cfg.Mux, Clock: n.cfg.Clock, Rand: rand.Reader, Seals: &n.keys,
		Logger: n.cfg.Log, OnFenced: n.wasFenced, Spread: n.spread, Lease: n.leaseLeft,
		StallAfter: worker.StallElections * timings.Election,
	})
	n.renewer = newRenewer(n)
	n.servePeers(n.services)
	n.events = newEventQueue(n.observe)
	n.cluster.FSM().Subscribe(func(_ uint64, events []store.Event) { n.events.put(events) })
	n.events.put([]store.Event{{Kind: store.EventKeys}}) // what came in between
	n.cluster.WhileLeader(n.director.Run)
	n.cluster.WhileLeader(n.forgetGone)
	n.spawn(func() {
		if err := n.mgmt.Serve(); err != nil && n.ctx.Err() == nil {
			n.fail(err)
		}
	})
	return nil
}

func (n *Node) openUserPort(context.Context) error {
	packet, err := n.cfg.Network.ListenPacket(n.cfg.UserAddr)
	if err != nil {
		return wire.Errorf(wire.Code_UNAVAILABLE, "the user port %s cannot be had: %v; stop what holds it or choose another --user-addr", n.cfg.UserAddr, err)
	}
	n.userAddr = advertised(n.cfg.AdvertiseUser, n.cfg.AdvertiseHost, packet.LocalAddr())
	n.userPort = packet
	return nil
}

// serveUserPort answers clients. QUIC takes the key of address tokens only once,
// so it is that of the newest generation at this moment, hence catchUp first: a
// rotation of it takes hold as nodes restart.
func (n *Node) serveUserPort(ctx context.Context) (err error) {
	if err := n.until(ctx, n.catchUp); err != nil {
		return err
	}
	if err := n.adoptKeys(); err != nil {
		return err
	}
	ring := n.keys.ring.Load()
	user := n.identity.UserServer(ring, rpcnet.ALPNUser, rpcnet.ALPNRelay)
	token, reset := ring.AddressToken(), n.identity.ResetKey(n.id)
	n.keys.serve(user)
	n.server, err = rpcnet.NewServer(rpcnet.ServerConfig{
		Packet: n.userPort, Network: n.cfg.Network, TLS: user.Config(), Clock: n.cfg.Clock, Log: n.cfg.Log,
		TokenKey: &token, ResetKey: &reset,
		Hello: n.hello, Identify: identify,
		Serve: func(st *rpcnet.Stream, first *wire.ClientFrame) { n.worker.Serve(st, first) },
	})
	if err != nil {
		return err
	}
	n.spawn(func() {
		if err := n.server.Serve(); err != nil && n.ctx.Err() == nil {
			n.fail(err)
		}
	})
	return nil
}

// joinCluster waits for the raft part, while gossip looks for the others.
func (n *Node) joinCluster(ctx context.Context) error {
	n.members.SetPeers(func() []string {
		addrs := append([]string(nil), n.cfg.Join...)
		for _, s := range n.cluster.Servers() {
			addrs = append(addrs, s.Addr)
		}
		return addrs
	})
	return n.until(ctx, n.cluster.WaitReady)
}

// until runs f with a context that also ends when the node stops by itself.
func (n *Node) until(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	return f(ctx)
}

func (n *Node) endpoint() *wire.Endpoint {
	host, user, _ := net.SplitHostPort(n.userAddr)
	mgmtHost, mgmt, _ := net.SplitHostPort(n.mgmtAddr)
	if host == "" {
		host = mgmtHost
	}
	u, _ := strconv.ParseUint(user, 10, 16)
	m, _ := strconv.ParseUint(mgmt, 10, 16)
	return &wire.Endpoint{Host: host, UserPort: uint32(u), MgmtPort: uint32(m)}
}

func (n *Node) wasFenced() {
	if n.leaving.Load() || n.stopping.Load() {
		return
	}
	select {
	case n.fenced <- struct{}{}:
	default:
	}
}

func (n *Node) nudge() {
	if n.opened.Load() != nil {
		n.director.Nudge()
	}
}

func (n *Node) clusterID() []byte {
	if c := n.opened.Load(); c != nil {
		return c.ClusterID()
	}
	return nil
}

// self is how clients are told of this node.
func (n *Node) self() *wire.NodeInfo {
	e := n.endpoint()
	return &wire.NodeInfo{Id: n.id, Name: n.cfg.Name, Host: e.GetHost(), UserPort: e.GetUserPort()}
}

func (n *Node) hello() *wire.HelloOK {
	h := &wire.HelloOK{Version: wire.Version, ClusterId: n.clusterID(), Self: n.self()}
	n.cluster.FSM().View(func(st *store.Store) {
		for _, r := range st.Workers() {
			if r.GetState() != wire.WorkerState_WORKER_STATE_FENCED {
				h.Nodes = append(h.Nodes, worker.NodeInfo(r))
			}
		}
	})
	return h
}

func (n *Node) spawn(f func()) {
	n.jobs.Add(1)
	go func() {
		defer n.jobs.Done()
		f()
	}()
}

// ID is the node's id, drawn when its data directory was made.
func (n *Node) ID() string { return n.id }

// Name is the node's name.
func (n *Node) Name() string { return n.cfg.Name }

// UserAddr is the address that clients reach the node by.
func (n *Node) UserAddr() string { return n.userAddr }

// DiskWrites tells of the node's synced writes to its log since it was opened how many
// there were, and how long they and the writing of snapshots have taken, one that is
// under way included: so long a call to the disk kept one of Go's processors. It is
// quick.
func (n *Node) DiskWrites() (count uint64, took time.Duration) {
	return n.cluster.LogWrites(), n.cluster.DiskTime()
}

// UserConns counts the clients' connections since the node was opened.
func (n *Node) UserConns() UserConns { return n.server.Stats() }

// Standbys counts the clients that stand by here, to be taken over when the owner
// of their session is lost.
func (n *Node) Standbys() int { return n.worker.Standbys() }

// MgmtAddr is the address that nodes and operators reach the node by.
func (n *Node) MgmtAddr() string { return n.mgmtAddr }

// Done is closed when the node has stopped.
func (n *Node) Done() <-chan struct{} { return n.stopped }

// Err is the fault that made the node stop by itself, nil if it was asked to.
func (n *Node) Err() error {
	if f := n.fault.Load(); f != nil {
		return *f
	}
	return nil
}

// fail stops the node because it cannot keep its promises any more.
func (n *Node) fail(err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	n.fault.CompareAndSwap(nil, &err)
	n.cfg.Log.Error("the node stops", "err", err)
	n.cancel()
	if n.serves.Load() { // else Open is under way: it sees the context end and closes
		go func() { _ = n.Close() }()
	}
}
