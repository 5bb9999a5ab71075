package rpcnet

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"

	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// pausing is a network that loses everything while it is paused, and what goes to
// the client while that is deaf.
type pausing struct {
	simnet.PerfectRouter
	paused, deaf atomic.Bool
}

var crowdClient = &net.UDPAddr{IP: net.IPv4(1, 0, 0, 2).To4(), Port: 1}

func (p *pausing) SendPacket(b simnet.Packet) error {
	if p.paused.Load() || p.deaf.Load() && b.To.String() == crowdClient.String() {
		return nil
	}
	return p.PerfectRouter.SendPacket(b)
}

// crowdPool is a pool and a server that it may dial, in virtual time.
func crowdPool(t *testing.T, server, client *tls.Config) (network *pausing, open func(crowd time.Duration) (MuxStream, *pooledConn, error)) {
	network = &pausing{}
	at := &net.UDPAddr{IP: net.IPv4(1, 0, 0, 1).To4(), Port: 1}
	srv, err := NewServer(ServerConfig{
		Packet: simnet.NewSimConn(at, network), TLS: server,
		Hello: func() *wire.HelloOK { return &wire.HelloOK{} }, Serve: func(*Stream, *wire.ClientFrame) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve() }()
	mine := simnet.NewSimConn(crowdClient, network)
	base := quicClientConfig(IdleTimeoutDefault)
	tr := CarrierOf(nil).Muxer(mine, MuxerOptions{})
	pool := newConnPool(poolConfig{
		transport: tr, clock: seam.OSClock{}, quic: base, crowd: quicCrowdConfig(base),
		dialTimeout: time.Minute, workers: new(sync.WaitGroup),
	})
	t.Cleanup(func() {
		network.paused.Store(false)
		pool.close()
		_ = tr.Close()
		_ = mine.Close()
		_ = srv.Close(context.Background())
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return network, func(crowd time.Duration) (MuxStream, *pooledConn, error) {
		qs, pc, _, err := pool.openFor(context.Background(), at.String(), client, dialFor{crowd: crowd})
		return qs, pc, err
	}
}

// certified are both ends' settings, which are good for the time outside of a
// bubble.
func certified(t *testing.T) (server, client *tls.Config) {
	client, err := pki.LoadClient(mgmtPKI())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	client.NextProtos, client.Time = []string{ALPNUser}, func() time.Time { return now }
	return mgmtUser(t, mgmtIdentity(t, "n1")), client
}

// In a crowd both ends may be late by more than what ends a connection otherwise:
// it is not given up, for that would be a handshake more to make.
func TestCrowdOutlastsAPause(t *testing.T) {
	for name, crowd := range map[string]time.Duration{"crowd": time.Second, "alone": 0} {
		t.Run(name, func(t *testing.T) {
			server, client := certified(t)
			synctest.Test(t, func(t *testing.T) {
				network, open := crowdPool(t, server, client)
				_, pc, err := open(crowd)
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second) // all is acknowledged, so that nothing is sent later and later
				network.paused.Store(true)
				time.Sleep(3 * IdleTimeoutDefault)
				network.paused.Store(false)
				time.Sleep(IdleTimeoutDefault)
				if lives := pc.qc.Context().Err() == nil; lives != (crowd > 0) {
					t.Errorf("after a pause the connection lives: %v", lives)
				}
			})
		})
	}
}

// So it is with a handshake.
func TestCrowdDialsThroughAPause(t *testing.T) {
	for name, crowd := range map[string]time.Duration{"crowd": time.Second, "alone": 0} {
		t.Run(name, func(t *testing.T) {
			server, client := certified(t)
			synctest.Test(t, func(t *testing.T) {
				network, open := crowdPool(t, server, client)
				network.paused.Store(true)
				time.AfterFunc(IdleTimeoutDefault+time.Second, func() { network.paused.Store(false) })
				if _, _, err := open(crowd); (err == nil) != (crowd > 0) {
					t.Errorf("a dial in a pause: %v", err)
				}
			})
		})
	}
}

// What a node says last is not taken back because the client is late to read it:
// it would have to ask again.
func TestLastWordWaitsForTheClient(t *testing.T) {
	server, client := certified(t)
	synctest.Test(t, func(t *testing.T) {
		network, open := crowdPool(t, server, client)
		qs, _, err := open(time.Second)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		network.deaf.Store(true)
		b, err := AppendFrame(nil, &wire.ClientFrame{Kind: &wire.ClientFrame_Hello{Hello: &wire.Hello{Version: wire.Version}}}, helloBytesMax)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := qs.Write(b); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * ByeTimeoutDefault)
		network.deaf.Store(false)
		if _, err := ReadFrame(bufio.NewReader(qs), helloBytesMax, nil); err != nil {
			t.Errorf("the node's answer: %v", err)
		}
		_ = qs.Close()
	})
}
