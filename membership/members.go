package membership

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/baton-cluster/baton/wire"
)

const (
	// announceTimeout bounds the wait until a change of our meta went out. It is
	// queued in any case, so a timeout loses nothing.
	announceTimeout = time.Second
	// leaveTimeout bounds each step of Leave, and so how long Close may wait
	// for one.
	leaveTimeout = 3 * time.Second
)

// Members is one node's part in gossip.
type Members struct {
	cfg       Config
	table     *table
	transport *transport
	ml        *memberlist.Memberlist
	ctx       context.Context // ends at Close
	cancel    context.CancelFunc
	wg        sync.WaitGroup // of this package's goroutines, except the transport's
	events    chan struct{}  // a change to report; holds one
	poke      chan struct{}  // look for missing peers now; holds one

	mu      sync.Mutex
	peers   func() []string
	cluster string // the cluster id that our meta states
	leaving bool
	left    chan struct{} // closed when Leave is through; nil before it began
	leftErr error
	closed  bool
	done    chan struct{} // closed when Close is through
}

// New binds what is to be bound and starts gossiping, with nobody yet: see Join
// and SetPeers. The error is a *wire.Error.
func New(cfg Config) (*Members, error) {
	m, err := prepare(cfg)
	if err != nil {
		if cfg.Packet != nil {
			_ = cfg.Packet.Close()
		}
		return nil, err
	}
	m.transport.start()
	if m.ml, err = memberlist.Create(m.listConfig()); err != nil {
		m.cancel()
		_ = m.transport.Shutdown()
		return nil, wire.Errorf(wire.Code_INTERNAL, "gossip cannot start: %v", err)
	}
	m.wg.Add(2)
	go m.report()
	go m.rejoinLoop()
	return m, nil
}

// prepare checks the configuration and builds everything that does not run.
func prepare(cfg Config) (*Members, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	cluster := string(cfg.ClusterID())
	if len(cluster) > clusterBytesMax {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "a cluster id has at most %d bytes", clusterBytesMax)
	}
	host, port, err := splitAddr(cfg.Advertise)
	if err != nil {
		return nil, err
	}
	ips, err := resolve(context.Background(), host)
	if err != nil {
		return nil, err
	}
	ip := ips[0]
	if v4 := ip.To4(); v4 != nil {
		ip = v4 // memberlist compares addresses as bytes
	}
	if cfg.Packet == nil {
		if cfg.Packet, err = cfg.Network.ListenPacket(cfg.Advertise); err != nil {
			return nil, wire.Errorf(wire.Code_UNAVAILABLE, "cannot bind UDP %s for gossip: %v", cfg.Advertise, err)
		}
	}
	m := &Members{
		cfg: cfg, events: make(chan struct{}, 1), poke: make(chan struct{}, 1),
		peers: func() []string { return nil }, cluster: cluster, done: make(chan struct{}),
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.table = &table{
		self: cfg.ID, clock: cfg.Clock, probeEvery: cfg.Profile.ProbeEvery, clusterID: cfg.ClusterID,
		local: m.localMeta, changed: m.changed, members: map[string]*entry{},
	}
	m.transport = &transport{
		packet: cfg.Packet, ip: ip, port: int(port), dialFn: cfg.Dial, addrOf: m.table.addr,
		clock: cfg.Clock, log: cfg.Log, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn),
		open: map[*trackedConn]struct{}{},
	}
	m.transport.ctx, m.transport.cancel = context.WithCancel(m.ctx)
	return m, nil
}

// listConfig is memberlist's, from the profile.
func (m *Members) listConfig() *memberlist.Config {
	p := m.cfg.Profile
	c := memberlist.DefaultLANConfig()
	c.Name = m.cfg.ID
	c.Transport = m.transport
	c.BindPort, c.AdvertisePort = m.transport.port, m.transport.port
	c.Label = label(m.cfg.Key)
	c.SecretKey = m.cfg.Key
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	// Our messages are small, and what is not accepted cannot be a bomb.
	c.EnableCompression = false
	c.ProbeInterval, c.ProbeTimeout = p.ProbeEvery, p.ProbeTimeout
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = p.SuspectRounds, 2
	// A node that notices its own slowness slows its probes at most this much,
	// so that detection stays within a small multiple of the profile's.
	c.AwarenessMaxMultiplier = 3
	c.GossipInterval, c.GossipToTheDeadTime = p.GossipEvery, p.KeepDead
	c.PushPullInterval, c.TCPTimeout = p.PushPullEvery, p.StreamTimeout
	// Ids are never reused, so a dead node at a new address is that node.
	c.DeadNodeReclaimTime = time.Millisecond
	c.Events, c.Alive, c.Ping, c.Delegate = m.table, m.table, m.table, m.table
	c.Logger = log.New(&logWriter{log: m.cfg.Log, clock: m.cfg.Clock}, "", 0)
	return c
}

// label keeps the gossip of different clusters apart before any decryption is
// tried. It goes in clear, and tells nothing of the key.
func label(key []byte) string {
	sum := sha256.Sum256(append([]byte("baton gossip label"), key...))
	return hex.EncodeToString(sum[:8])
}

// Handle takes a stream that came in on the management port, and owns it.
func (m *Members) Handle(c net.Conn) { m.transport.accept(c) }

// Join exchanges members with the nodes at addrs (host:port of management
// ports) and returns how many answered. The error is a *wire.Error,
// UNAVAILABLE, if none did.
func (m *Members) Join(addrs []string) (int, error) {
	reached := 0
	var errs []error
	for _, addr := range addrs {
		if addr == m.cfg.Advertise {
			continue
		}
		if err := m.joinOne(addr); err != nil {
			errs = append(errs, err)
			continue
		}
		reached++
	}
	if reached == 0 && len(errs) > 0 {
		return 0, wire.Errorf(wire.Code_UNAVAILABLE, "no node could be reached for gossip: %v", errors.Join(errs...))
	}
	return reached, nil
}

// joinOne resolves by itself: memberlist would ask DNS servers in its own way.
func (m *Members) joinOne(addr string) error {
	host, port, err := splitAddr(addr)
	if err != nil {
		return err
	}
	ips, err := resolve(m.ctx, host)
	if err != nil {
		return err
	}
	for _, ip := range ips {
		a := net.TCPAddr{IP: ip, Port: int(port)}
		if _, err = m.ml.Join([]string{a.String()}); err == nil {
			return nil
		}
	}
	return err
}

// List returns all members known, this node among them, by id.
func (m *Members) List() []Member { return m.table.list() }

// Alive reports whether gossip holds the node for alive (or merely suspects
// it), and whether it was ever heard of.
func (m *Members) Alive(id string) (alive, known bool) { return m.table.alive(id) }

// localMeta is called by memberlist under its lock.
func (m *Members) localMeta() meta {
	m.mu.Lock()
	defer m.mu.Unlock()
	return meta{leaving: m.leaving, name: m.cfg.Name, addr: m.cfg.Advertise, cluster: m.cluster}
}

// changed notes that there is something to report.
func (m *Members) changed() {
	select {
	case m.events <- struct{}{}:
	default:
	}
}

// report calls OnChange until Close.
func (m *Members) report() {
	defer m.wg.Done()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-m.events:
			m.cfg.OnChange()
		}
	}
}

// Leave tells the others that this node goes for good, so that they list it as
// left, not dead. It waits until that went out, ctx ends, or a few seconds have
// passed. A second call waits for the first. Close must still follow.
func (m *Members) Leave(ctx context.Context) error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return wire.Errorf(wire.Code_SHUTTING_DOWN, "gossip has stopped")
	}
	if m.left == nil {
		m.left = make(chan struct{})
		m.leaving = true
		m.wg.Add(1) // before closed can be set: Close waits for us
		go m.leave()
	}
	left := m.left
	m.mu.Unlock()
	select {
	case <-left:
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.leftErr
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *Members) leave() {
	defer m.wg.Done()
	_ = m.ml.UpdateNode(announceTimeout) // what it says is repeated by the next line
	err := m.ml.Leave(leaveTimeout)
	if err != nil {
		err = wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "the others may not have heard that this node leaves: %v", err)
	}
	m.mu.Lock()
	m.leftErr = err
	m.mu.Unlock()
	close(m.left)
}

// Close stops gossiping: without Leave the others will find this node dead. It
// closes the socket and all streams, and waits. It may be called repeatedly.
func (m *Members) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		<-m.done
		return nil
	}
	m.closed = true
	m.mu.Unlock()
	defer close(m.done)
	m.cancel()
	m.transport.abort() // first, so that nothing below waits for the network
	m.wg.Wait()
	if err := m.ml.Shutdown(); err != nil {
		return wire.Errorf(wire.Code_INTERNAL, "gossip did not stop cleanly: %v", err)
	}
	return nil
}
