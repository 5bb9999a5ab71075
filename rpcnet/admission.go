package rpcnet

import (
	"context"
	"errors"
	"net"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

// Admission to the handshake. A handshake that has begun costs a processor about a
// millisecond, and one that is given up before its end has been work for nothing:
// where more begin than processors get done, all get slower, until none ends in
// time. So a node begins only as many as it has processors for, and turns the
// others away at once, which costs next to nothing, for they come again.
//
// What waits for a processor is a handshake from its first packet until QUIC hands
// its connection over, which is before anything depends on the client's answer. A
// client that says only half of its hello must not hold a place for long, so a
// place is given up after a second; and past HandshakesUnverifiedMax handshakes
// under way only those get one that have proved their address.
const (
	// handshakesPerProcessor keep a processor busy for some 50 ms: longer than the
	// node's own pauses, shorter than any client's patience.
	handshakesPerProcessor = 64
	// placeHeld is after how long a place is free again.
	placeHeld = time.Second
	// acceptors wait for connections, beside the 32 that QUIC lets wait for them:
	// one more than that it refuses, when the work on it has been done. Between them
	// they take more than there are places, so none is refused for that.
	acceptors = 256
)

// HandshakesWaitingMaxDefault is how many handshakes wait for a processor at most.
func HandshakesWaitingMaxDefault() int {
	return min(acceptors, handshakesPerProcessor*runtime.GOMAXPROCS(0))
}

// places are those of the handshakes that wait for a processor. It does no IO and
// reads no clock.
type places struct {
	max  int
	held []time.Duration // when each was given, oldest first; 0: given back out of turn
	base uint64          // the number of held[0]
	busy int             // of held, those that are not given back
	most int             // busy at most, ever
}

// take gives a place, unless there is none.
func (p *places) take(now time.Duration) (place uint64, ok bool) {
	for len(p.held) > 0 && (p.held[0] == 0 || now-p.held[0] >= placeHeld) {
		if p.held[0] != 0 {
			p.busy--
		}
		p.held, p.base = p.held[1:], p.base+1
	}
	if p.busy >= p.max {
		return 0, false
	}
	p.held = append(p.held, max(now, 1))
	p.busy++
	p.most = max(p.most, p.busy)
	return p.base + uint64(len(p.held)) - 1, true
}

// back gives a place back; one that is free again already may be given back, too.
func (p *places) back(place uint64) {
	if place >= p.base && p.held[place-p.base] != 0 {
		p.held[place-p.base] = 0
		p.busy--
	}
}

// bucket lets so many a second pass, after a burst of as many.
type bucket struct {
	perSecond, held float64
	at              time.Duration
	begun           bool
}

func (b *bucket) take(now time.Duration) bool {
	if !b.begun {
		b.begun, b.held, b.at = true, b.perSecond, now
	}
	b.held = min(b.perSecond, b.held+b.perSecond*max(0, now-b.at).Seconds())
	b.at = now
	if b.held < 1 {
		return false
	}
	b.held--
	return true
}

// handshake is one that was admitted, in its connection's context.
type handshake struct {
	place          uint64
	waiting, under atomic.Bool // for a processor; under way
}

type handshakeKey struct{}

// admit counts connections before their handshake and refuses those beyond the
// limits, which costs neither a key exchange nor a goroutine.
func (s *Server) admit(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	ip := info.RemoteAddr.String()
	if host, _, err := net.SplitHostPort(ip); err == nil {
		ip = host
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Clock.Now()
	if s.closing || s.connCount >= s.cfg.ConnsMax || s.perIP[ip] >= s.cfg.ConnsPerIPMax || !s.shakes.take(now) {
		s.counts.refused.Add(1)
		return nil, errors.New("too many connections")
	}
	place, ok := s.places.take(now)
	if !ok {
		s.counts.refused.Add(1)
		return nil, errors.New("too many handshakes at once")
	}
	s.connCount++
	s.perIP[ip]++
	if info.AddrVerified {
		s.counts.verified.Add(1)
	}
	s.handshakes.Add(1)
	h := &handshake{place: place}
	h.waiting.Store(true)
	h.under.Store(true)
	context.AfterFunc(ctx, func() {
		s.handshakeDone(h)
		if e, ok := errors.AsType[*quic.TransportError](context.Cause(ctx)); ok && !e.Remote && e.ErrorCode == quic.ConnectionRefused {
			s.counts.overflown.Add(1)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.leavePlace(h)
		s.connCount--
		if s.perIP[ip]--; s.perIP[ip] == 0 {
			delete(s.perIP, ip)
		}
	})
	return context.WithValue(ctx, handshakeKey{}, h), nil
}

// handshakeOf is that of an accepted connection.
func handshakeOf(qc MuxConn) *handshake {
	h, _ := qc.Context().Value(handshakeKey{}).(*handshake)
	return h
}

// leavePlace needs s.mu.
func (s *Server) leavePlace(h *handshake) {
	if h != nil && h.waiting.CompareAndSwap(true, false) {
		s.places.back(h.place)
	}
}

func (s *Server) handshakeDone(h *handshake) {
	if h != nil && h.under.CompareAndSwap(true, false) {
		s.handshakes.Add(-1)
	}
}
