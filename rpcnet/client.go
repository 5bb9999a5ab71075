package rpcnet

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

const (
	// RequestTimeoutDefault bounds calls whose context has no deadline.
	RequestTimeoutDefault = 10 * time.Second
	// SilenceDefault is how long requests may wait without any answer before the
	// client looks for another way to the session.
	SilenceDefault = time.Second
)

// ClientConfig configures a Client. Addrs and TLS are required.
type ClientConfig struct {
	Addrs   []string    // user addresses (host:port) of any nodes, or of a load balancer before them
	TLS     *tls.Config // verifies the nodes' certificates; NextProtos is set by Dial
	Network seam.Network
	Clock   seam.Clock
	Rand    io.Reader // secrets, ids, jitter; default crypto/rand
	Log     *slog.Logger

	RequestTimeout time.Duration // for calls without a deadline
	DialTimeout    time.Duration // for a connection to one node
	Silence        time.Duration // without an answer; see SilenceDefault
	IdleTimeout    time.Duration // without a sign of life on a connection
	// ConfirmedReads has every query confirmed by a majority of the voters; see
	// Confirmed.
	ConfirmedReads bool
	// Relay reaches owners only through other nodes: for clients that can reach
	// nothing but a load balancer.
	Relay bool
	// Standby keeps a connection to the node that takes each session if its owner
	// crashes; all sessions with the same one share it. That node then speaks first,
	// and the client dials nobody. It costs the cluster a second connection a
	// client, and a stream a session.
	Standby bool
	Hooks   Hooks
}

// Hooks tell an application what its client does. They are called in order, from
// one goroutine a session, and may call the client.
type Hooks struct {
	// OnAttempt is told of each attempt to attach, when it has ended.
	OnAttempt func(Attempt)
}

// Attempt is one attempt to attach to a session's owner.
type Attempt struct {
	Session string
	Addr    string // the node asked
	Relay   bool   // it was asked to relay
	Err     error  // nil: attached
}

// withDefaults returns a copy with every field set, or all faults at once.
func (c ClientConfig) withDefaults() (ClientConfig, error) {
	var faults []error
	if len(c.Addrs) == 0 {
		faults = append(faults, errors.New("rpcnet: ClientConfig.Addrs needs at least one address"))
	}
	for _, a := range c.Addrs {
		if _, _, err := net.SplitHostPort(a); err != nil {
			faults = append(faults, fmt.Errorf("rpcnet: ClientConfig.Addrs: %q is not host:port: %w", a, err))
		}
	}
	if c.TLS == nil {
		faults = append(faults, errors.New("rpcnet: ClientConfig.TLS is required"))
	} else {
		c.TLS = c.TLS.Clone()
		c.TLS.NextProtos = []string{ALPNUser}
		if c.TLS.ClientSessionCache == nil {
			// All nodes bear one name: a ticket of one resumes at any other.
			c.TLS.ClientSessionCache = newTickets(ticketsMax)
		}
	}
	if c.Network == nil {
		c.Network = seam.OSNetwork{}
	}
	if c.Clock == nil {
		c.Clock = seam.OSClock{}
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	faults = append(faults,
		defaultTo("RequestTimeout", &c.RequestTimeout, RequestTimeoutDefault),
		defaultTo("DialTimeout", &c.DialTimeout, DialTimeoutDefault),
		defaultTo("Silence", &c.Silence, SilenceDefault),
		defaultTo("IdleTimeout", &c.IdleTimeout, IdleTimeoutDefault),
	)
	return c, errors.Join(faults...)
}

// Client reaches a cluster. One UDP socket and one connection a node serve all
// its sessions. It is safe for concurrent use.
type Client struct {
	cfg    ClientConfig
	log    *slog.Logger
	packet net.PacketConn
	tr     Muxer
	pool   *connPool
	book   *book
	wg     sync.WaitGroup // sessions' goroutines

	mu       sync.Mutex
	rng      *mrand.Rand
	slot     float64 // place in [0, 1) among the clients that lose a node together
	cluster  []byte
	closed   bool
	sessions map[*Session]struct{}
}

// Dial connects to the first of the configured nodes that answers, and tries them
// in turn until one does or ctx (or RequestTimeout) ends. Errors: UNAVAILABLE,
// or the refusal of all of them: WRONG_VERSION, NOT_AUTHORISED.
func Dial(ctx context.Context, cfg ClientConfig) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	var seed [32]byte
	if _, err := io.ReadFull(cfg.Rand, seed[:]); err != nil {
		return nil, fmt.Errorf("rpcnet: no randomness: %w", err)
	}
	packet, err := cfg.Network.ListenPacket(":0")
	if err != nil {
		return nil, fmt.Errorf("rpcnet: no packet socket: %w", err)
	}
	c := &Client{
		cfg: cfg, log: cfg.Log, packet: packet, tr: CarrierOf(cfg.Network).Muxer(packet, MuxerOptions{}),
		rng: mrand.New(mrand.NewChaCha8(seed)), sessions: map[*Session]struct{}{},
	}
	c.slot = c.rng.Float64()
	qconf := quicClientConfig(cfg.IdleTimeout)
	qconf.TokenStore = quic.NewLRUTokenStore(tokenOriginsMax, tokensMax)
	crowd := quicCrowdConfig(qconf)
	c.book = newBook(cfg.Addrs, int(binary.BigEndian.Uint16(seed[:])))
	c.pool = newConnPool(poolConfig{
		transport: c.tr, clock: cfg.Clock, dialTimeout: cfg.DialTimeout,
		quic: qconf, crowd: crowd, workers: &c.wg,
		onConn: c.greet,
	})
	if err := c.firstHello(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// firstHello greets the configured nodes in turn until one answers.
func (c *Client) firstHello(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer c.cfg.Clock.AfterFunc(c.cfg.RequestTimeout, func() { cancel(context.DeadlineExceeded) }).Stop()
	var last error
	for round := 1; ; round++ {
		final := true
		for _, addr := range c.cfg.Addrs {
			last = c.hello(ctx, addr)
			if last == nil {
				return nil
			}
			switch wire.CodeOf(last) {
			case wire.Code_WRONG_VERSION, wire.Code_WRONG_CLUSTER, wire.Code_NOT_AUTHORISED:
			default:
				final = false
			}
		}
		if final {
			return last
		}
		d := min(huntMax, huntMin<<min(round, 8))
		if ctx.Err() == nil {
			_ = seam.Sleep(ctx, c.cfg.Clock, d/2+c.jitter(d/2))
		}
		if ctx.Err() != nil {
			e := wire.Errorf(wire.Code_UNAVAILABLE, "none of %v answered: %v; check that the addresses are user ports of a running cluster", c.cfg.Addrs, last)
			return &deadlineError{refusal: e, cause: context.Cause(ctx)}
		}
	}
}

// greet learns the nodes from a node just connected to: when the crowd is over,
// if it came in one.
func (c *Client) greet(ctx context.Context, addr string, f dialFor) {
	if f.hello || f.crowd > 0 && seam.Sleep(ctx, c.cfg.Clock, f.crowd+c.jitter(f.crowd)) != nil || !c.pool.has(addr) {
		return
	}
	if err := c.hello(ctx, addr); err != nil {
		c.log.Debug("hello failed", "addr", addr, "err", err)
	}
}

// hello asks the node at addr who it is and which nodes it knows.
func (c *Client) hello(ctx context.Context, addr string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	qs, pc, _, err := c.pool.openFor(ctx, addr, c.cfg.TLS, dialFor{hello: true})
	if err != nil {
		return err
	}
	defer c.pool.release(pc)
	defer c.cfg.Clock.AfterFunc(c.cfg.DialTimeout+c.cfg.Silence, cancel).Stop()
	defer context.AfterFunc(ctx, func() { qs.CancelRead(quic.StreamErrorCode(wire.Code_DEADLINE_EXCEEDED)) })()
	b, err := AppendFrame(nil, &wire.ClientFrame{Kind: &wire.ClientFrame_Hello{
		Hello: &wire.Hello{Version: wire.Version, ClusterId: c.clusterID()}}}, helloBytesMax)
	if err != nil {
		return err
	}
	if err := qs.TryWriteAll(b); err != nil {
		return streamErr(err)
	}
	defer func() { _ = qs.Close() }()
	if b, err = ReadFrame(bufio.NewReaderSize(qs, streamReadBytes), helloBytesMax, nil); err != nil {
		return streamErr(err)
	}
	f, err := decodeServerFrame(b)
	if err != nil {
		return err
	}
	if bye := f.GetBye(); bye != nil {
		return wire.Errorf(bye.GetCode(), "%s: %s", addr, bye.GetMessage())
	}
	h := f.GetHello()
	if h == nil {
		return badRequest("%s answered a hello with something else", addr)
	}
	return c.learn(addr, h)
}

// learn takes what a node said of itself and its cluster.
func (c *Client) learn(addr string, h *wire.HelloOK) error {
	c.mu.Lock()
	if len(c.cluster) == 0 {
		c.cluster = slices.Clone(h.GetClusterId())
	}
	same := len(h.GetClusterId()) == 0 || string(c.cluster) == string(h.GetClusterId())
	c.mu.Unlock()
	if !same {
		return wire.Errorf(wire.Code_WRONG_CLUSTER, "%s belongs to another cluster than the first node that answered; check the addresses", addr)
	}
	c.book.learn(h.GetNodes()...)
	c.book.learn(h.GetSelf())
	c.book.trust(addr)
	return nil
}

func (c *Client) clusterID() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cluster
}

func (c *Client) jitter(d time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Duration(c.rng.Int64N(int64(max(1, d))))
}

func (c *Client) random(n int) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(c.cfg.Rand, b); err != nil {
		return nil, fmt.Errorf("rpcnet: no randomness: %w", err)
	}
	return b, nil
}

// Nodes returns the cluster's nodes as far as the client has heard of them. They
// must not be changed.
func (c *Client) Nodes() []*wire.NodeInfo {
	c.book.mu.Lock()
	defer c.book.mu.Unlock()
	return slices.Clone(c.book.nodes)
}

// OpenOptions describe a session to be opened.
type OpenOptions struct {
	ID     string        // default: random
	Secret []byte        // wire.SecretBytes bytes; default: random
	TTL    time.Duration // detached for so long, it expires; wire.TTLMin to wire.TTLMax, default wire.TTLDefault
	Shared bool          // several clients may be attached at once
	Node   string        // open it at this node (id or name), if it can be reached
}

// Open opens a session and attaches to it. Errors: those of the context
// (DEADLINE_EXCEEDED, with the last obstacle), SESSION_EXISTS, BAD_SESSION_ID,
// BAD_REQUEST, WRONG_CLUSTER, WRONG_VERSION, SHUTTING_DOWN after Close. After a
// DEADLINE_EXCEEDED the session may exist; Resume with the secret given.
func (c *Client) Open(ctx context.Context, o OpenOptions) (*Session, error) {
	if o.ID == "" {
		b, err := c.random(wire.IDBytes)
		if err != nil {
			return nil, err
		}
		o.ID = hex.EncodeToString(b)
	}
	if err := wire.CheckSessionID(o.ID); err != nil {
		return nil, err
	}
	if o.TTL == 0 {
		o.TTL = wire.TTLDefault
	}
	if o.TTL < wire.TTLMin || o.TTL > wire.TTLMax {
		return nil, badRequest("a TTL is %v to %v, not %v", wire.TTLMin, wire.TTLMax, o.TTL)
	}
	var err error
	if o.Secret == nil {
		if o.Secret, err = c.random(wire.SecretBytes); err != nil {
			return nil, err
		}
	}
	nonce, err := c.random(wire.IDBytes)
	if err != nil {
		return nil, err
	}
	return c.newSession(ctx, o.ID, o.Secret, o.Node, &wire.OpenReq{
		Version: wire.Version, Session: o.ID, Secret: o.Secret, Nonce: nonce,
		TtlUs: uint64(o.TTL.Microseconds()), Shared: o.Shared,
	})
}

// Resume attaches to a session that exists, as a new client instance. It
// displaces the client that is attached, unless the session is shared. Errors:
// those of the context, UNKNOWN_SESSION, SESSION_CLOSED, SESSION_EXPIRED,
// BAD_SECRET, WRONG_CLUSTER, WRONG_VERSION, SHUTTING_DOWN after Close.
func (c *Client) Resume(ctx context.Context, id string, secret []byte) (*Session, error) {
	if err := wire.CheckSessionID(id); err != nil {
		return nil, err
	}
	return c.newSession(ctx, id, secret, "", nil)
}

// Close leaves every session, which lives on in the cluster until its TTL runs
// out, and closes all connections. Calls in progress fail with SHUTTING_DOWN. It
// waits for the client's goroutines, so it must not be called from a hook or
// callback. It may be called again.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		c.wg.Wait()
		return nil
	}
	c.closed = true
	sessions := make([]*Session, 0, len(c.sessions))
	for s := range c.sessions {
		sessions = append(sessions, s)
	}
	c.mu.Unlock()
	for _, s := range sessions {
		s.stop(errClientClosed)
	}
	c.pool.close()
	c.wg.Wait()
	return errors.Join(c.tr.Close(), c.packet.Close())
}

var errClientClosed = wire.Errorf(wire.Code_SHUTTING_DOWN, "the client was closed")
