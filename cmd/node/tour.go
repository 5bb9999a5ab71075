package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

// tourMax bounds a tour, whatever happens to its cluster.
const tourMax = time.Minute

// tourJSON is what a guided tour prints.
type tourJSON struct {
	Tour  string                `json:"tour"`
	OK    bool                  `json:"ok"`
	Steps []baton.RehearsalStep `json:"steps"`
}

// tour walks through one part of the migration machinery on three real nodes.
// The first step that fails ends it.
type tour struct {
	f     *fleet
	admin *baton.Admin
	c     *baton.Client
	s     *baton.Session
	steps []baton.RehearsalStep
}

// tours are the parts that have a tour on a cluster.
var tours = []struct {
	name, short string
	walk        func(*tour, context.Context)
}{
	{"lifecycle", "One move through all its states, and what ends without one", (*tour).lifecycle},
	{"session", "A session and its client, moved attached and detached", (*tour).session},
	{"service", "What an operator may ask of moves, and what is refused", (*tour).service},
}

// tourCmds are the demo's subcommands.
func (p *program) tourCmds() []*cobra.Command {
	var cmds []*cobra.Command
	for _, t := range tours {
		cmd := &cobra.Command{
			Use: t.name, Short: t.short, Args: cobra.NoArgs,
			Long:    t.short + ", step by step, on three\nreal nodes of its own. Exit 5 if a step fails.",
			Example: "  baton demo " + t.name + "\n  baton demo " + t.name + " --json",
		}
		cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
			steps, err := p.tourOnFleet(ctx, t.walk)
			if err != nil {
				return err
			}
			return p.printTour(t.name, steps)
		})
		cmds = append(cmds, cmd)
	}
	token := &cobra.Command{
		Use: "token", Short: "Migration tokens and sealed snapshots, and every way to be refused", Args: cobra.NoArgs,
		Long:    "Mints, uses, forges, replays, revokes and outlives migration tokens, and seals and opens snapshots, with\nthe code and the rules of a cluster on a state in memory. Exit 5 if a step fails.",
		Example: "  baton demo token\n  baton demo token --json",
	}
	token.RunE = p.run(func(context.Context, []string) error { return p.printTour("token", baton.RehearseToken()) })
	return append(cmds, token)
}

func (p *program) tourOnFleet(ctx context.Context, walk func(*tour, context.Context)) ([]baton.RehearsalStep, error) {
	ctx, cancel := context.WithTimeout(ctx, tourMax)
	defer cancel()
	f, err := newFleet("", "", 0)
	if err != nil {
		return nil, localError{err}
	}
	defer f.close()
	t := &tour{f: f}
	defer t.close()
	t.step("three nodes form a cluster", func() (string, error) { return "", f.run(ctx) })
	t.step("a client and an operator reach it", func() (_ string, err error) {
		if t.admin, err = baton.DialAdmin(ctx, baton.AdminConfig{Addrs: f.mgmts(), PKI: f.pki}); err != nil {
			return "", err
		}
		t.c, err = baton.Dial(ctx, baton.ClientConfig{Addrs: f.users(0), PKI: f.pki})
		return "", err
	})
	walk(t, ctx)
	return t.steps, nil
}

func (t *tour) close() {
	if t.c != nil {
		_ = t.c.Close()
	}
	if t.admin != nil {
		_ = t.admin.Close()
	}
}

// step runs unless one before it failed.
func (t *tour) step(name string, do func() (string, error)) {
	if n := len(t.steps); n == 0 || t.steps[n-1].OK {
		t.steps = append(t.steps, baton.Rehearse(name, do))
	}
}

// refused is a step that must be refused with the code.
func (t *tour) refused(name, code string, do func() error) {
	t.step(name, func() (string, error) {
		err := do()
		if got := baton.CodeOf(err).Label(); got != code {
			return "", fmt.Errorf("want the refusal %s, got %s: %w", code, got, err)
		}
		return "refused: " + code, nil
	})
}

func (t *tour) open(ctx context.Context, id string) {
	t.step("open a session", func() (_ string, err error) {
		if t.s, err = t.c.Open(ctx, baton.OpenOptions{ID: id, TTL: time.Minute}); err != nil {
			return "", err
		}
		return fmt.Sprintf("%s owns it under epoch %d", t.s.Owner().Name, t.s.Epoch()), nil
	})
}

// incr is a call whose answer is known.
func (t *tour) incr(ctx context.Context, name string, want int64) {
	t.step(name, func() (string, error) {
		n, r, err := t.s.Incr(ctx, keyCounter, 1)
		if err == nil && n != want {
			err = fmt.Errorf("the counter is at %d, want %d", n, want)
		}
		return fmt.Sprintf("%d, by %s under epoch %d", n, r.Node, r.Epoch), err
	})
}

// elsewhere is a node that does not own the session.
func (t *tour) elsewhere() string {
	for _, n := range t.f.nodes {
		if n.name != t.s.Owner().Name {
			return n.name
		}
	}
	return ""
}

// move moves the session, which must go through all states in order.
func (t *tour) move(ctx context.Context, id, to string) (baton.MigrationInfo, error) {
	m, err := t.admin.Migrate(ctx, baton.MigrateRequest{Session: id, To: to, Reason: "load_balancing"})
	if err != nil {
		return m, err
	}
	last := -1
	for _, s := range m.Steps {
		at := slices.Index(allStates, s.State)
		if at <= last {
			return m, fmt.Errorf("it came to %s after %s", s.State, allStates[last])
		}
		last = at
	}
	if last != len(allStates)-1 {
		return m, fmt.Errorf("it ended in %s", m.State)
	}
	return m, nil
}

// allStates are what a migration that completes goes through, in order. Where
// the source's account of its own states comes too late, those are missing.
var allStates = []string{
	"Idle", "Initiating", "WaitingConfirmation", "Preparing", "CapturingState", "TransferringState",
	"Pivoting", "Verifying", "Completing", "Completed",
}

func (t *tour) lifecycle(ctx context.Context) {
	const id = "tour-lifecycle"
	t.open(ctx, id)
	t.incr(ctx, "a call at the first owner", 1)
	var m baton.MigrationInfo
	t.step("move it: every state in order", func() (_ string, err error) {
		before := t.s.Epoch()
		m, err = t.move(ctx, id, t.elsewhere())
		if err == nil && m.Epoch <= before {
			err = fmt.Errorf("epoch %d after %d", m.Epoch, before)
		}
		return fmt.Sprintf("from %s to %s, epoch %d, paused %s", m.From, m.To, m.Epoch, micros(m.PauseUS)), err
	})
	if len(t.steps) > 0 && t.steps[len(t.steps)-1].OK {
		for _, s := range m.Steps { // told, not run: they were part of the step before
			t.steps = append(t.steps, baton.RehearsalStep{Name: "state " + s.State, OK: true, TookUS: s.TookUS})
		}
	}
	t.incr(ctx, "the next call at the next owner", 2)
	t.refused("what has pivoted cannot be called off", "migration_pivoted", func() error {
		_, err := t.admin.AbortMigration(ctx, m.Migration)
		return err
	})
	t.step("move it back", func() (string, error) {
		back, err := t.move(ctx, id, m.From)
		if err == nil && back.Epoch <= m.Epoch {
			err = fmt.Errorf("epoch %d after %d: an old owner would be taken for the new one", back.Epoch, m.Epoch)
		}
		return fmt.Sprintf("epoch %d", back.Epoch), err
	})
	t.incr(ctx, "a call back home", 3)
	t.history(ctx, id, 3)
	t.verify(ctx)
}

// history is the session's: opened, and moved.
func (t *tour) history(ctx context.Context, id string, want int) {
	t.step("explain who owned it, and why", func() (string, error) {
		e, err := t.admin.Explain(ctx, id)
		if err == nil && len(e.Changes) != want {
			err = fmt.Errorf("%d changes of owner on record, want %d", len(e.Changes), want)
		}
		return fmt.Sprintf("%d changes of owner", len(e.Changes)), err
	})
}

func (t *tour) verify(ctx context.Context) {
	t.step("verify: no two owners, the same state everywhere", func() (string, error) {
		v, err := t.admin.Verify(ctx)
		if err == nil && !v.OK {
			err = fmt.Errorf("%v", v.Violations)
		}
		return fmt.Sprintf("%d serving intervals compared", v.Checked), err
	})
}

// printTour prints the steps. One that failed is a violation.
func (p *program) printTour(name string, steps []baton.RehearsalStep) error {
	out := tourJSON{Tour: name, OK: true, Steps: nonNil(steps)}
	for _, s := range steps {
		out.OK = out.OK && s.OK
	}
	p.print(out, func(w io.Writer) {
		for _, s := range steps {
			word := p.paint(w, ansiGreen, "ok  ")
			if !s.OK {
				word = p.paint(w, ansiRed, "FAIL")
			}
			fmt.Fprintf(w, "%s %9s  %s", word, micros(s.TookUS), s.Name)
			if s.Detail != "" {
				fmt.Fprintf(w, " %s", p.paint(w, ansiDim, "("+s.Detail+")"))
			}
			fmt.Fprintln(w)
		}
	})
	if !out.OK {
		return violation{fmt.Sprintf("the tour %s is not ok: %v", name, errors.New(steps[len(steps)-1].Name))}
	}
	return nil
}
