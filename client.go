package baton

import (
	"context"
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// ClientConfig says how a program reaches a cluster. Addrs is required, and one
// of PKI and TLS.
type ClientConfig struct {
	// Addrs are user addresses (host:port) of any nodes, or of a load balancer
	// before them.
	Addrs []string
	// PKI is a directory with the cluster's ca.crt. TLS is for those who verify
	// the nodes in another way.
	PKI string
	TLS *tls.Config
	// RelayOnly reaches owners only through the nodes at Addrs.
	RelayOnly bool
	// ConfirmedReads has every query confirmed by a majority of the voters instead
	// of answered by the owner alone, under its lease. It is needed where this
	// program's clock may stop unnoticed, as when a hypervisor suspends it.
	ConfirmedReads bool
	// RequestTimeout is for calls without a deadline; default 10 s.
	RequestTimeout time.Duration
	// Silence is how long a node may leave a request without an answer before
	// the client asks another; default 1 s.
	Silence time.Duration
	// Standby keeps a connection to the node that takes the sessions over if their
	// owner crashes, so that it can speak first. It costs the cluster a second
	// connection for each client.
	Standby bool
	Log     *slog.Logger
	Network seam.Network
	Clock   seam.Clock
	// OnAttempt, if set, is told of every attempt to send a request.
	OnAttempt func(Attempt)
}

// What calls and callbacks tell.
type (
	// Reply is a call's or a query's outcome: Payload, the Node that served it in which
	// Epoch, and whether a query was answered under a lease.
	Reply = rpcnet.Reply
	// Push is a message from the session's handlers: its Payload, and how many before
	// it were Missed.
	Push = rpcnet.Push
	// Gap tells of pushes that this client should have had and will not get.
	Gap = rpcnet.Gap
	// Attempt is one sending of a request; see ClientConfig.OnAttempt.
	Attempt = rpcnet.Attempt
	// QueryOption changes one query: Confirmed.
	QueryOption = rpcnet.QueryOption
	// Stream is a client's end of a byte stream; see Session.OpenStream.
	Stream = rpcnet.ByteStream
	// ClientStats counts a client's connections, UserConns a node's.
	ClientStats = rpcnet.ClientStats
	UserConns   = rpcnet.ServerStats
)

// OpenOptions of a new session; the zero value is good.
type OpenOptions = rpcnet.OpenOptions

// Confirmed has a query confirmed by a majority of the voters, whatever the
// leases are.
const Confirmed = rpcnet.Confirmed

// NodeInfo names a node.
type NodeInfo struct {
	ID, Name, Host string
	UserPort       int
}

func nodeInfo(i *wire.NodeInfo) NodeInfo {
	return NodeInfo{ID: i.GetId(), Name: i.GetName(), Host: i.GetHost(), UserPort: int(i.GetUserPort())}
}

// Move tells that a session has another owner.
type Move struct {
	From, To NodeInfo
	Epoch    uint64
	Planned  bool          // by a migration, not after a loss
	Pause    time.Duration // for how long nobody served this client, as far as it knows
	// Gap: what the application held of the session in memory only was lost, as
	// it is when an owner crashes. What was committed is all there.
	Gap bool
}

// Client reaches a cluster. It is safe for concurrent use.
type Client struct{ c *rpcnet.Client }

// Dial connects to the first node of Addrs that answers, and learns the others
// from it.
func Dial(ctx context.Context, cfg ClientConfig) (*Client, error) {
	if len(cfg.Addrs) == 0 {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "Addrs is empty: give the user address of any node")
	}
	conf := cfg.TLS
	if conf == nil {
		var err error
		if conf, err = pki.LoadClient(cfg.PKI); err != nil {
			return nil, err
		}
	}
	c, err := rpcnet.Dial(ctx, rpcnet.ClientConfig{
		Addrs: cfg.Addrs, TLS: conf, Network: cfg.Network, Clock: cfg.Clock, Log: cfg.Log, Relay: cfg.RelayOnly, Standby: cfg.Standby, ConfirmedReads: cfg.ConfirmedReads,
		RequestTimeout: cfg.RequestTimeout, Silence: cfg.Silence, Hooks: rpcnet.Hooks{OnAttempt: cfg.OnAttempt},
	})
	if err != nil {
		return nil, err
	}
	return &Client{c}, nil
}

// Open opens a session and attaches to it. Keep its ID and Secret to resume it.
func (c *Client) Open(ctx context.Context, o OpenOptions) (*Session, error) {
	s, err := c.c.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	return &Session{s}, nil
}

// Resume attaches to a session that is there.
func (c *Client) Resume(ctx context.Context, id string, secret []byte) (*Session, error) {
	s, err := c.c.Resume(ctx, id, secret)
	if err != nil {
		return nil, err
	}
	return &Session{s}, nil
}

// Stats counts the connections made so far: which of those to a migration's
// target resumed with 0-RTT, and which had to fall back.
func (c *Client) Stats() ClientStats { return c.c.Stats() }

// Close leaves all sessions and the cluster.
func (c *Client) Close() error { return c.c.Close() }

// Session is a client's hold on a session. Its calls are applied in order and
// exactly once, wherever the session lives and moves; each is retried until it
// is settled or its context ends. It is safe for concurrent use.
type Session struct{ s *rpcnet.Session }

// ID is the session's id, and Secret what opens it to its holder.
func (s *Session) ID() string { return s.s.ID() }

// Secret is what Resume needs beside the id.
func (s *Session) Secret() []byte { return s.s.Secret() }

// Epoch is the highest epoch that the client has seen.
func (s *Session) Epoch() uint64 { return s.s.Epoch() }

// Owner is the node that owns the session, as far as the client knows.
func (s *Session) Owner() NodeInfo { return nodeInfo(s.s.Owner()) }

// Call runs a write-class method. When ctx ends before the outcome is known, the
// error is DEADLINE_EXCEEDED and the call will have been applied once or never.
func (s *Session) Call(ctx context.Context, method string, payload []byte) (Reply, error) {
	return s.s.Call(ctx, method, payload)
}

// Query runs a read-only method. It sees everything that was acknowledged to any
// client before it began. The owner answers from memory while it holds a lease.
// Otherwise, or with the option Confirmed, a majority of the voters confirms the
// answer, or the log where that fails.
func (s *Session) Query(ctx context.Context, method string, payload []byte, options ...QueryOption) (Reply, error) {
	return s.s.Query(ctx, method, payload, options...)
}

// OpenStream opens a byte stream to a method that the nodes registered with
// Mux.HandleStream: for bulk data, and for streaming calls (SendMessage,
// RecvMessage), each way and beside the session's calls. It follows the session:
// across planned moves the streams of resumable handlers go on, without a byte
// lost or read twice; other handlers end with STREAM_MOVED. After a crash of the
// owner a stream ends with STREAM_LOST. ctx is the stream's until its end.
func (s *Session) OpenStream(ctx context.Context, method string, argument []byte) (*Stream, error) {
	return s.s.OpenStream(ctx, method, argument)
}

// OnPush sets what is called with each push, in order. Until it is set pushes
// wait at the owner, which takes no more of them when its outbox is full
// (OUTBOX_FULL); OnPush(nil) lets them go unread.
func (s *Session) OnPush(f func(Push)) { s.s.OnPush(f) }

// OnGap sets what is called when pushes are missing that this client should have
// had, in order with the pushes; without it a warning is logged. The session goes
// on. It happens to clients of shared sessions only; see Gap. (Move.Gap is about
// what an application holds in memory.)
func (s *Session) OnGap(f func(Gap)) { s.s.OnGap(f) }

// OnMove sets what is called when the session has another owner.
func (s *Session) OnMove(f func(Move)) {
	s.s.OnMove(func(m rpcnet.Move) {
		f(Move{From: nodeInfo(m.From), To: nodeInfo(m.To), Epoch: m.Epoch, Planned: m.Planned, Pause: m.Pause, Gap: m.Gap})
	})
}

// Done is closed when the session has ended for this client; Err tells why.
func (s *Session) Done() <-chan struct{} { return s.s.Done() }

// Err is why the session has ended for this client, nil while it has not.
func (s *Session) Err() error { return s.s.Err() }

// Detach leaves the session; it lives on for its TTL.
func (s *Session) Detach(ctx context.Context) error { return s.s.Detach(ctx) }

// Close ends the session for good.
func (s *Session) Close(ctx context.Context) error { return s.s.Close(ctx) }
