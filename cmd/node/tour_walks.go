package main

import (
	"context"
	"fmt"

	"github.com/baton-cluster/baton"
)

// The tours on a cluster that are about what a client, and what an operator sees.

// session shows a client whose session moves under it.
func (t *tour) session(ctx context.Context) {
	const id = "tour-session"
	t.open(ctx, id)
	moves, pushes := make(chan baton.Move, 8), make(chan uint64, 8)
	t.step("follow its pushes and moves", func() (string, error) {
		t.s.OnMove(func(m baton.Move) { moves <- m })
		t.s.OnPush(func(m baton.Push) { pushes <- m.Seq })
		return "", nil
	})
	t.incr(ctx, "a call", 1)
	t.pushed(ctx, pushes, "a durable push at the first owner", 1)
	t.step("move it while its client is attached", func() (string, error) {
		if _, err := t.move(ctx, id, t.elsewhere()); err != nil {
			return "", err
		}
		select {
		case m := <-moves:
			if !m.Planned || m.Gap {
				return "", fmt.Errorf("the client saw %+v: want a planned move without a gap", m)
			}
			return fmt.Sprintf("the client saw it move to %s, paused %s", m.To.Name, micros(m.Pause.Microseconds())), nil
		case <-ctx.Done():
			return "", fmt.Errorf("the client saw no move: %w", ctx.Err())
		}
	})
	t.incr(ctx, "the same handle calls on", 2)
	t.pushed(ctx, pushes, "the next push: none lost, none twice", 2)

	var secret []byte
	t.step("leave it", func() (string, error) {
		secret = t.s.Secret()
		return "it lives on for its time to live", t.s.Detach(ctx)
	})
	t.step("move it while nobody is attached", func() (string, error) {
		m, err := t.move(ctx, id, t.elsewhere())
		return fmt.Sprintf("to %s, epoch %d", m.To, m.Epoch), err
	})
	t.refused("resume it with a wrong secret", "bad_secret", func() error {
		_, err := t.c.Resume(ctx, id, make([]byte, secretBytes))
		return err
	})
	t.step("resume it", func() (_ string, err error) {
		t.s, err = t.c.Resume(ctx, id, secret)
		return "", err
	})
	t.incr(ctx, "its state is all there", 3)
	t.history(ctx, id, 3)
	t.step("close it for good", func() (string, error) { return "", t.s.Close(ctx) })
	t.refused("it cannot be resumed", "session_closed", func() error {
		_, err := t.c.Resume(ctx, id, secret)
		return err
	})
	t.verify(ctx)
}

// pushed asks for a push and waits until it has come, with the seq given.
func (t *tour) pushed(ctx context.Context, pushes <-chan uint64, name string, want uint64) {
	t.step(name, func() (string, error) {
		if _, err := t.s.Push(ctx, []byte("hello")); err != nil {
			return "", err
		}
		select {
		case seq := <-pushes:
			if seq != want {
				return "", fmt.Errorf("push %d came, want %d", seq, want)
			}
			return fmt.Sprintf("push %d", seq), nil
		case <-ctx.Done():
			return "", fmt.Errorf("it never came: %w", ctx.Err())
		}
	})
}

// service shows what the cluster does with requests for moves.
func (t *tour) service(ctx context.Context) {
	const id = "tour-service"
	migrate := func(req baton.MigrateRequest) func() error {
		return func() error { _, err := t.admin.Migrate(ctx, req); return err }
	}
	t.refused("move a session that does not exist", "unknown_session", migrate(baton.MigrateRequest{Session: "nobody", To: "n1"}))
	t.open(ctx, id)
	t.incr(ctx, "a call", 1)
	t.refused("move it to a node that does not exist", "unknown_worker", migrate(baton.MigrateRequest{Session: id, To: "n9"}))
	t.refused("move it for no known reason", "bad_request", migrate(baton.MigrateRequest{Session: id, Reason: "boredom"}))
	t.refused("move it with a priority that there is not", "bad_request", migrate(baton.MigrateRequest{Session: id, Priority: 9}))
	t.step("move it to where it is", func() (string, error) {
		err := migrate(baton.MigrateRequest{Session: id, To: t.s.Owner().Name})()
		if code := baton.CodeOf(err).Label(); code != "same_node" {
			return "", fmt.Errorf("want the refusal same_node, got %s: %w", code, err)
		}
		return "refused: same_node", nil
	})
	t.incr(ctx, "no refusal has disturbed it", 2)
	var m baton.MigrationInfo
	t.step("let the cluster choose where to", func() (_ string, err error) {
		m, err = t.move(ctx, id, "")
		return fmt.Sprintf("to %s", m.To), err
	})
	t.step("it is on record", func() (string, error) {
		all, err := t.admin.Migrations(ctx, 10)
		if err != nil {
			return "", err
		}
		for _, r := range all {
			if r.Migration == m.Migration && r.State == "Completed" {
				return fmt.Sprintf("migration %d, by %s", r.Migration, r.By), nil
			}
		}
		return "", fmt.Errorf("migration %d is not among %d on record", m.Migration, len(all))
	})
	t.step("drain its node", func() (string, error) {
		r, err := t.admin.Drain(ctx, m.To, baton.DrainOptions{}, nil)
		if err == nil && (r.Lost+r.Duplicated+r.Failed+r.Remaining > 0) {
			err = fmt.Errorf("%+v", r)
		}
		return fmt.Sprintf("%d moved, %d lost, %d twice", r.Moved, r.Lost, r.Duplicated), err
	})
	t.refused("move it back to the node that drains", "target_draining", migrate(baton.MigrateRequest{Session: id, To: m.To}))
	t.step("end the drain", func() (string, error) { return "", t.admin.Undrain(ctx, m.To) })
	t.incr(ctx, "a call after all this", 3)
	t.verify(ctx)
}
