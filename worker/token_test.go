package worker

import (
	"testing"
	"time"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/wire"
)

// show presents a migration token at a node, as a client's stream does, and
// returns what the node says first.
func (mv *move) show(t *testing.T, node string, change func(*wire.AttachReq)) *wire.ServerFrame {
	t.Helper()
	x := mv.w.newClient("s", nil)
	req := &wire.AttachReq{Session: "s", Instance: x.instance, Token: mv.token[:], Migration: mv.m.GetId(), Epoch: mv.m.GetSourceEpoch()}
	if change != nil {
		change(req)
	}
	x.session = req.GetSession()
	x.serve(node, &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: req}})
	return x.next()
}

// TestTokenRefusals: each way to misuse a migration's token is refused with a
// code of its own, and leaves nothing behind. (Of another cluster: see rpcnet.)
func TestTokenRefusals(t *testing.T) {
	cases := []struct {
		name   string
		node   string // "b", the target, unless set
		before func(*move, *client)
		change func(*wire.AttachReq)
		want   wire.Code // OK: it is taken
	}{
		{name: "good", want: wire.Code_OK},
		{name: "good, no epoch told", change: func(r *wire.AttachReq) { r.Epoch = 0 }, want: wire.Code_OK},
		{name: "forged", change: func(r *wire.AttachReq) { r.Token = fresh(migrate.TokenBytes) }, want: wire.Code_TOKEN_UNKNOWN},
		{name: "one bit off", change: func(r *wire.AttachReq) {
			r.Token = append([]byte(nil), r.GetToken()...)
			r.Token[31] ^= 1
		}, want: wire.Code_TOKEN_UNKNOWN},
		{name: "cut short", change: func(r *wire.AttachReq) { r.Token = r.GetToken()[:31] }, want: wire.Code_TOKEN_UNKNOWN},
		{name: "of no migration", change: func(r *wire.AttachReq) { r.Migration = 12345 }, want: wire.Code_TOKEN_UNKNOWN},
		{name: "session", change: func(r *wire.AttachReq) { r.Session = "t" }, want: wire.Code_TOKEN_WRONG_SESSION},
		{name: "target", node: "c", want: wire.Code_TOKEN_WRONG_TARGET},
		{name: "the source itself", node: "a", want: wire.Code_TOKEN_WRONG_TARGET},
		{name: "the target's next life", before: func(mv *move, _ *client) {
			res := mv.w.register("b", mv.m.GetTarget().GetIncarnation())
			mv.to.SetIncarnation(res.GetEpoch())
		}, want: wire.Code_TOKEN_WRONG_TARGET},
		{name: "epoch", change: func(r *wire.AttachReq) { r.Epoch += 5 }, want: wire.Code_TOKEN_WRONG_EPOCH},
		{name: "replayed after the move", before: func(mv *move, c *client) { mv.invite(c); mv.moved(mv.handover(c)) }, want: wire.Code_TOKEN_USED},
		{name: "revoked", before: func(mv *move, _ *client) { mv.abort() }, want: wire.Code_TOKEN_REVOKED},
		{name: "revoked by the session's end", before: func(mv *move, _ *client) {
			mv.w.must(&wire.Command{Kind: &wire.Command_Close{Close: &wire.CloseSession{Session: "s", Epoch: mv.m.GetSourceEpoch(), Owner: mv.m.GetSource()}}})
		}, want: wire.Code_TOKEN_REVOKED},
		{name: "expired", before: func(mv *move, _ *client) {
			mv.w.log.pass(2 * time.Hour)
			mv.w.must(&wire.Command{Kind: &wire.Command_Tick{Tick: &wire.Tick{}}})
		}, want: wire.Code_TOKEN_EXPIRED},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, "a", "b", "c")
			c := w.open("a", "s", false)
			w.open("a", "t", false)
			mv := w.begin("s", "a", "b")
			if tc.before != nil {
				tc.before(mv, c)
			}
			w.log.flush()
			node := tc.node
			if node == "" {
				node = "b"
			}
			f := mv.show(t, node, tc.change)
			if tc.want == wire.Code_OK {
				if f.GetWarm() == nil {
					t.Fatalf("%v", f)
				}
				return
			}
			if f.GetBye().GetCode() != tc.want {
				t.Fatalf("%v, want %v", f, tc.want)
			}
			w.log.flush()
			in := w.workers[node].expected(mv.m.GetId())
			if clients, _ := in.warmClients(); len(clients) != 0 {
				t.Error("a client without the token counts as warm")
			}
		})
	}
}

// TestTokenOfAnotherMigration of the same session is unknown, not merely stale.
func TestTokenOfAnotherMigration(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.open("a", "s", false)
	first := w.begin("s", "a", "b")
	first.abort()
	second := w.begin("s", "a", "b")
	w.log.flush()
	if f := second.show(t, "b", func(r *wire.AttachReq) { r.Token = first.token[:] }); f.GetBye().GetCode() != wire.Code_TOKEN_UNKNOWN {
		t.Errorf("%v", f)
	}
	if f := first.show(t, "b", nil); f.GetBye().GetCode() != wire.Code_TOKEN_REVOKED {
		t.Errorf("%v", f)
	}
	c.ok(c.write("incr", "n"), "1")
}

// warmClients is arrived for an incoming that may be none.
func (in *incoming) warmClients() ([][]byte, bool) {
	if in == nil {
		return nil, false
	}
	return in.arrived(nil)
}
