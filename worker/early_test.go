package worker

import (
	"context"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// A warm attach that came in 0-RTT may be a replay: until the handshake is
// confirmed the target does not report the client, tells it nothing, and does
// not put another stream of it aside.
func TestWarmAttachCountsOnceItIsConfirmed(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	if err := mv.to.Prepare(&wire.PrepareReq{Migration: mv.m, Attached: true}); err != nil {
		t.Fatal(err)
	}
	early := func() *client {
		warm := *c
		link := newLink()
		link.shaking = &handshake{asked: make(chan struct{}), done: make(chan struct{})}
		warm.serveOn(link, "b", &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
			Session: c.session, Instance: c.instance, Token: mv.token[:], Migration: mv.m.GetId(),
		}}})
		<-link.shaking.asked
		return &warm
	}
	warmAtTarget := func() int {
		over, cancel := context.WithCancel(context.Background())
		cancel()
		resp, err := mv.to.AwaitWarm(over, &wire.WarmReq{Migration: mv.m.GetId(), Clients: [][]byte{c.instance}})
		if err != nil {
			t.Fatal(err)
		}
		return len(resp.GetClients())
	}
	replay := early()
	if n := warmAtTarget(); n != 0 {
		t.Fatalf("%d clients are warm by a replay", n)
	}
	replay.silent()
	replay.hangUp()

	real := early()
	close(real.link.shaking.done)
	real.until("Warm", func(f *wire.ServerFrame) bool { return f.GetWarm() != nil })
	if n := warmAtTarget(); n != 1 {
		t.Fatalf("%d clients are warm, want 1", n)
	}
	again := early() // a replay of what has counted
	real.silent()
	ch := mv.handover(c)
	mv.moved(ch)
	real.pivoted(mv.m.GetSourceEpoch())
	real.ok(real.write("incr", "n"), "1")
	again.hangUp()
}
