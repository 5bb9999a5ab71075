package rpcnet

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/baton-cluster/baton/seam"
)

// openConn is a connection that opens streams.
type openConn struct{ MuxConn }

func (openConn) Context() context.Context           { return context.Background() }
func (openConn) OpenStream() (MuxStream, error)     { return nil, nil }
func (openConn) HandshakeComplete() <-chan struct{} { return nil }

// TestFullConnectionIsUsedAgain: a connection on which the node took no more sessions
// carries others once some have ended.
func TestFullConnectionIsUsedAgain(t *testing.T) {
	p := newConnPool(poolConfig{clock: seam.OSClock{}})
	pc := &pooledConn{qc: openConn{}, addr: "a:1", streams: 5}
	p.conns["a:1"] = []*pooledConn{pc}
	open := func() *pooledConn {
		p.mu.Lock()
		defer p.mu.Unlock()
		_, pc := p.openLocked("a:1")
		return pc
	}
	p.refused(pc) // the fifth
	p.release(pc)
	if open() != nil {
		t.Error("a further stream on a full connection")
	}
	p.release(pc)
	if open() != pc {
		t.Error("a connection that was full once is not used again")
	}
	p.mu.Lock()
	pc.full, pc.streams = 0, 6
	p.mu.Unlock()
	for range 2 { // at once, before either is counted off
		p.refused(pc)
	}
	p.release(pc)
	p.release(pc)
	if open() != nil {
		t.Error("a further stream on a connection that refused two")
	}
}

// noMuxer dials nobody.
type noMuxer struct {
	Muxer
	dialled int
}

func (m *noMuxer) Dial(context.Context, net.Addr, *tls.Config, *quic.Config) (MuxConn, error) {
	m.dialled++
	return nil, errors.New("nobody is there")
}

func (m *noMuxer) DialEarly(ctx context.Context, to net.Addr, conf *tls.Config, q *quic.Config) (MuxConn, error) {
	return m.Dial(ctx, to, conf, q)
}

// TestNamesHaveTimeOfTheirOwn: a name that takes longer to look up than a dial may is
// dialled all the same, and waited for no longer than a dial.
func TestNamesHaveTimeOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, lookUps := &noMuxer{}, 0
		p := newConnPool(poolConfig{
			clock: seam.OSClock{}, dialTimeout: time.Second, quic: &quic.Config{}, transport: m,
			resolve: func(ctx context.Context, _ string) (net.Addr, error) {
				lookUps++
				select {
				case <-ctx.Done():
					return nil, ctx.Err()
				case <-time.After(5500 * time.Millisecond):
					return &net.UDPAddr{}, nil
				}
			},
		})
		for range 2 {
			for i, f := range []dialFor{{}, {early: []byte("frame")}, {}, {}, {}, {}} {
				if _, _, err := p.connect("name:1", nil, f); err == nil {
					t.Error("nobody was reached")
				}
				if i == 4 {
					time.Sleep(time.Second) // what comes while nobody waits counts, too
				}
			}
		}
		if m.dialled != 2 || lookUps != 2 {
			t.Errorf("dialled %d times, after %d look-ups", m.dialled, lookUps)
		}
	})
}
