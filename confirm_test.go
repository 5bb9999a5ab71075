package baton_test

import (
	"context"
	"testing"

	"github.com/baton-cluster/baton"
)

// TestConfirmMoveThatFails: an application that panics or gives no answer when it is
// asked about a move keeps that session where it is, and holds up nothing else.
func TestConfirmMoveThatFails(t *testing.T) {
	answers := make(chan struct{})
	c := startClusterWith(t, func(_ int, cfg *baton.Config) {
		cfg.ConfirmMove = func(_ context.Context, m baton.MoveOffer) baton.Confirmation {
			switch m.Session {
			case "panics":
				panic("as programs do")
			case "hangs":
				<-answers
			}
			return baton.AcceptMove()
		}
	})
	ctx := testContext(t)
	client := c.client()
	sessions := map[string]*baton.Session{}
	move := func(id string) error {
		return c.migrate(ctx, id, c.name(c.other(c.ownerIndex(sessions[id]))))
	}
	for _, id := range []string{"panics", "hangs", "moves"} {
		s, err := client.Open(ctx, baton.OpenOptions{ID: id})
		must(t, err)
		sessions[id] = s
		if err := move(id); (err == nil) != (id == "moves") {
			t.Errorf("%s: %v", id, err)
		}
	}
	// What hangs holds up no leader, the present or a former one.
	for range 3 {
		must(t, insist(ctx, func() error { return c.admin().TransferLeader(ctx) }))
		must(t, move("moves"))
	}
	close(answers)
	must(t, insist(ctx, func() error { return move("hangs") }))
}
