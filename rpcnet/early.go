package rpcnet

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/baton-cluster/baton/wire"
)

// 0-RTT (RFC 9001, 4.6; RFC 8446, 8). A client that has a session ticket of any
// node may send its first frame to another together with its handshake. Whoever
// has seen those packets can send them again, to any node; only who made them
// can complete the handshake. So:
//
//   - A client sends in 0-RTT nothing but the AttachReq with which it shows a
//     migration's target that it can reach it.
//   - A server hands only such a frame on before the handshake is complete, and
//     ServerConfig.Serve treats it as a hint until Stream.Confirmed. Any other
//     frame, and any further one, waits in the server.
//   - Relaying takes a certificate, hence a whole handshake: its configuration
//     takes no tickets.

// mayBeEarly reports whether f may be acted on, as a hint, when it came in 0-RTT.
// One to be relayed may not: a replay would make this node dial another.
func mayBeEarly(f *wire.ClientFrame) bool {
	a := f.GetAttach()
	return a.GetMigration() != 0 && len(a.GetToken()) > 0 && !a.GetRelay()
}

// Confirmed waits until the far end has completed its handshake, so that what it
// sent is no replay. It returns nil at once on a stream that began after that,
// and an error if the stream ends first.
func (st *Stream) Confirmed() error {
	select {
	case <-st.conn.qc.HandshakeComplete():
		return nil
	default:
	}
	select {
	case <-st.conn.qc.HandshakeComplete():
		return nil
	case <-st.ctx.Done():
		return io.EOF
	}
}

// awaitHandshake reports whether the handshake of a connection came to its end,
// and counts it off.
func (s *Server) awaitHandshake(qc MuxConn) bool {
	defer s.handshakeDone(handshakeOf(qc))
	select {
	case <-qc.HandshakeComplete():
	case <-qc.Context().Done():
		return false
	case <-s.ctx.Done():
		_ = qc.CloseWithError(quic.ApplicationErrorCode(wire.Code_SHUTTING_DOWN), "shutting down")
		return false
	}
	s.counts.add(qc.ConnectionState())
	return true
}

// serverCounts are those of ServerStats.
type serverCounts struct {
	full, resumed, zeroRTT, verified, refused, overflown, crowded atomic.Uint64
}

func (c *serverCounts) add(cs quic.ConnectionState) {
	switch {
	case cs.Used0RTT:
		c.zeroRTT.Add(1)
	case cs.TLS.DidResume:
		c.resumed.Add(1)
	default:
		c.full.Add(1)
	}
}

// ServerStats counts the connections that completed their handshake, by how.
type ServerStats struct {
	Full    uint64 // with a certificate
	Resumed uint64 // with a ticket, and not with 0-RTT
	ZeroRTT uint64
	// AddrVerified counts those, complete or not, that brought proof of their
	// address from an earlier connection.
	AddrVerified uint64
	// Refused counts those that a limit turned away before their handshake, and
	// Overflown those that QUIC did because too many waited to be accepted.
	Refused   uint64
	Overflown uint64
	// WaitingMost is how many handshakes have waited for a processor at once, of
	// WaitingMax that may.
	WaitingMost, WaitingMax int
	// Crowded counts the sessions that a connection was too full for.
	Crowded uint64
	// Open and Sessions are the connections that there are now, and the sessions on
	// them.
	Open, Sessions int
}

// Stats counts the server's connections, those since it was made and those now.
func (s *Server) Stats() ServerStats {
	st := ServerStats{
		Full: s.counts.full.Load(), Resumed: s.counts.resumed.Load(),
		ZeroRTT: s.counts.zeroRTT.Load(), AddrVerified: s.counts.verified.Load(),
		Refused: s.counts.refused.Load(), Overflown: s.counts.overflown.Load(), Crowded: s.counts.crowded.Load(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Open, st.WaitingMost, st.WaitingMax = len(s.conns), s.places.most, s.places.max
	for _, c := range s.conns {
		st.Sessions += len(c.sessions)
	}
	return st
}

// ClientStats counts the connections that a client made, by how. The first three
// exclude each other.
type ClientStats struct {
	ZeroRTT  uint64 // warm: the first frame was taken in 0-RTT
	Fallback uint64 // warm: 0-RTT was offered and refused; the node's keys or limits differ
	Full     uint64 // nothing was sent early: a first connection, or one that is not warm
	// WarmFull counts, of Full, those to a migration's target: there was no ticket.
	WarmFull uint64
	// WarmReused counts the warm streams that a connection was there for.
	WarmReused uint64
	// Failed counts the dials that brought no connection, and Refused those of them
	// that a node turned away because others came at once.
	Failed, Refused uint64
}

// Stats counts the client's connections since Dial.
func (c *Client) Stats() ClientStats {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	return c.pool.stats
}

// connectEarly is connect with a first frame that may travel in 0-RTT. It returns
// when the handshake is complete, with the stream that the node took the frame
// on, or with none.
func (p *connPool) connectEarly(ctx context.Context, addr string, to net.Addr, conf *tls.Config, early []byte, limit time.Duration) (MuxConn, MuxStream, error) {
	qc, err := p.cfg.transport.DialEarly(ctx, to, conf, p.cfg.quic)
	if err != nil {
		return nil, nil, p.dialErr(addr, err, limit)
	}
	var qs MuxStream
	offered := false
	select {
	case <-qc.HandshakeComplete(): // there was no ticket, or it was quicker than this
	default:
		offered = true
		if qs, err = qc.OpenStream(); err == nil {
			err = qs.TryWriteAll(early)
		}
	}
	if waited := qc.Settle(ctx); waited != nil {
		_ = qc.CloseWithError(0, "")
		return nil, nil, p.dialErr(addr, waited, limit)
	}
	state := qc.ConnectionState()
	used := state.Used0RTT
	offered = offered || state.TLS.DidResume
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case used:
		p.stats.ZeroRTT++
	case offered:
		p.stats.Fallback++
	default:
		p.stats.Full++
		p.stats.WarmFull++
	}
	if !used || err != nil {
		return qc, nil, nil // the frame goes again
	}
	return qc, qs, nil
}
