package rpcnet

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// serverConn is one accepted connection and the sessions that it carries: those
// that its streams began with, for as long as the streams last. When the
// connection ends, so do its streams, and with them its entry. The server's mutex
// guards what is not set at the beginning.
type serverConn struct {
	id      uint64
	qc      MuxConn
	alpn    string
	relayed bool
	early   bool // resumed with 0-RTT
	resumed bool
	since   time.Duration // the clock's elapsed time when it was accepted
	writer  connWriter

	secured atomic.Pointer[security] // set once the handshake is complete

	sessions map[*Stream]string
}

// security is what secures a connection.
type security struct {
	alpn           string
	version, suite uint32
	identity       string // role and name of the far end's certificate, empty: none
}

// security asks QUIC once, as every move of a session does: it copies much.
func (c *serverConn) security(identify func(tls.ConnectionState) (role, name string)) *security {
	if known := c.secured.Load(); known != nil {
		return known
	}
	complete := false
	select {
	case <-c.qc.HandshakeComplete():
		complete = true
	default: // more is to come
	}
	cs := c.qc.ConnectionState().TLS
	now := &security{alpn: cs.NegotiatedProtocol, version: uint32(cs.Version), suite: uint32(cs.CipherSuite)}
	if role, name := identify(cs); role != "" {
		now.identity = role + " " + name
	}
	if complete {
		c.secured.Store(now)
	}
	return now
}

func (s *Server) newConn(qc MuxConn) *serverConn {
	cs := qc.ConnectionState()
	return &serverConn{
		qc: qc, alpn: cs.TLS.NegotiatedProtocol, relayed: cs.TLS.NegotiatedProtocol == ALPNRelay,
		early: cs.Used0RTT, resumed: cs.TLS.DidResume, since: s.cfg.Clock.Now(), sessions: map[*Stream]string{},
		writer: connWriter{workers: &s.workers},
	}
}

// Conn tells of one connection.
type Conn struct {
	ID      uint64   // unique in the server
	Remote  net.Addr // as of now: a client may change its address
	ALPN    string
	Relayed bool // another node is at the far end, and relays for clients
	ZeroRTT bool // it resumed from a ticket and had its first frame taken in 0-RTT
	Resumed bool // it resumed from a ticket
	Age     time.Duration
	// Sessions are those that it carries, sorted; a session of several attached
	// clients may be there more than once.
	Sessions []string
	Stats    *wire.Transport
}

// ConnList lists the connections by their ids.
func (s *Server) ConnList() []Conn {
	now := s.cfg.Clock.Now()
	s.mu.Lock()
	list := make([]Conn, 0, len(s.conns))
	open := make([]MuxConn, 0, len(s.conns))
	for _, c := range s.conns {
		conn := Conn{ID: c.id, ALPN: c.alpn, Relayed: c.relayed, ZeroRTT: c.early, Resumed: c.resumed, Age: now - c.since}
		for _, id := range c.sessions {
			conn.Sessions = append(conn.Sessions, id)
		}
		list, open = append(list, conn), append(open, c.qc)
	}
	s.mu.Unlock()
	for i, qc := range open { // without the mutex, which every stream needs
		slices.Sort(list[i].Sessions)
		list[i].Remote, list[i].Stats = qc.RemoteAddr(), transportOf(qc)
	}
	slices.SortFunc(list, func(a, b Conn) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// SessionsByConn lists sessions in the order of their connections, those behind
// the connection after, until there are limit or more: a connection's are not
// parted. last is the connection to go on behind, 0 if there are no more.
func (s *Server) SessionsByConn(after uint64, limit int) (sessions []string, last uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]uint64, 0, len(s.conns))
	for id, c := range s.conns {
		if id > after && len(c.sessions) > 0 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for i, id := range ids {
		begin := len(sessions)
		for _, session := range s.conns[id].sessions {
			sessions = append(sessions, session)
		}
		slices.Sort(sessions[begin:])
		sessions = sessions[:begin+len(slices.Compact(sessions[begin:]))]
		if len(sessions) >= limit && i < len(ids)-1 {
			return sessions, id
		}
	}
	return sessions, 0
}

// enter makes a connection known until its end.
func (s *Server) enter(c *serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextConnID++
	c.id = s.nextConnID
	s.conns[c.id] = c
}

func (s *Server) gone(c *serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c.id)
}

// carry notes that a stream is a session's, unless its connection carries as many
// as it may. A relay's connections have other nodes' clients on them, and no
// bound but that of streams.
func (s *Server) carry(st *Stream, session string) bool {
	s.mu.Lock()
	full := !st.conn.relayed && len(st.conn.sessions) >= s.cfg.SessionsPerConnMax
	if !full {
		st.conn.sessions[st] = session
	}
	s.mu.Unlock()
	if full {
		s.counts.crowded.Add(1)
		st.Bye(wire.Code_CONNECTION_FULL, fmt.Sprintf("this connection carries %d sessions, which is the limit; use another for more", s.cfg.SessionsPerConnMax))
	}
	return !full
}

func transportOf(qc MuxConn) *wire.Transport {
	s := qc.ConnectionStats()
	return &wire.Transport{
		MinRttUs:      uint64(s.MinRTT.Microseconds()),
		SmoothedRttUs: uint64(s.SmoothedRTT.Microseconds()),
		LatestRttUs:   uint64(s.LatestRTT.Microseconds()),
		BytesSent:     s.BytesSent,
		BytesReceived: s.BytesReceived,
		PacketsLost:   s.PacketsLost,
	}
}
