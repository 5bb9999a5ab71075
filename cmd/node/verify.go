package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/baton-cluster/baton"
)

const verifyEvery = 2 * time.Second

// verdictJSON is a verdict, and what a ledger adds to it.
type verdictJSON struct {
	baton.Verdict
	Lost       *int `json:"lost,omitempty"`
	Duplicated *int `json:"duplicated,omitempty"`
	StaleReads *int `json:"stale_reads,omitempty"`
}

func (p *program) verifyCmd() *cobra.Command {
	var (
		u           user
		once, watch bool
		ledger      string
	)
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check a live cluster: one owner everywhere, one state on all replicas",
		Long: "Compares the nodes' state hashes at one log index and their records of what they served.\n" +
			"With a ledger that bench wrote, it also reads every session of it again and compares.\nExit 5 on a violation.",
		Example: "  baton verify --json\n  baton verify --watch\n  baton verify --ledger bench.ledger",
		Args:    cobra.NoArgs,
	}
	u.flags(cmd)
	f := cmd.Flags()
	f.BoolVar(&once, "once", false, "check once (the default)")
	f.BoolVar(&watch, "watch", false, "check again and again until Ctrl-C or a violation")
	f.StringVar(&ledger, "ledger", "", "file that bench --ledger or demo --ledger wrote")
	cmd.MarkFlagsMutuallyExclusive("once", "watch")
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		var h *History
		if ledger != "" {
			var err error
			if h, err = openLedger(ledger); err != nil {
				return usageError{err, "baton verify"}
			}
		}
		check := func() error { return p.verify(ctx, &u, h) }
		if !watch {
			return check()
		}
		return p.repeat(ctx, verifyEvery, check)
	})
	return cmd
}

func openLedger(path string) (*History, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h, err := readLedger(f)
	return &h, err
}

// verify checks once and prints the verdict.
func (p *program) verify(ctx context.Context, u *user, h *History) error {
	var v baton.Verdict
	if err := u.ask(ctx, func(ctx context.Context, a *baton.Admin) (err error) {
		v, err = a.Verify(ctx)
		return err
	}); err != nil {
		return err
	}
	out := verdictJSON{Verdict: v}
	var unread error
	if h != nil {
		var found Findings
		var err error
		if found, unread, err = u.compare(ctx, *h); err != nil {
			return err
		}
		out.Lost, out.Duplicated, out.StaleReads = &found.Lost, &found.Duplicated, &found.StaleReads
		out.DoubleOwned += found.DoubleOwned
		out.Violations = append(out.Violations, found.Violations...)
		out.OK = out.OK && found.clean()
	}
	if out.OK && unread != nil {
		return unread
	}
	out.Hashes, out.Violations, out.Unreachable = nonNil(out.Hashes), nonNil(out.Violations), nonNil(out.Unreachable)
	p.print(out, func(w io.Writer) { p.printVerdict(w, out) })
	if !out.OK {
		return violation{fmt.Sprintf("verify found %d violations", max(1, len(out.Violations)))}
	}
	return nil
}

func (p *program) printVerdict(w io.Writer, v verdictJSON) {
	word := p.paint(w, ansiGreen, "ok")
	if !v.OK {
		word = p.paint(w, ansiRed, "VIOLATED")
	}
	fmt.Fprintf(w, "%s: %d serving intervals compared, double owned %d, overlaps %d; hashes at index %d:", word, v.Checked, v.DoubleOwned, v.Overlaps, v.Index)
	for _, h := range v.Hashes {
		fmt.Fprintf(w, " %s=%s", h.Node, h.Hash)
	}
	if v.Lost != nil {
		fmt.Fprintf(w, "; ledger: lost %d, duplicated %d, stale reads %d", *v.Lost, *v.Duplicated, *v.StaleReads)
	}
	fmt.Fprintln(w)
	for _, n := range v.Unreachable {
		fmt.Fprintf(w, "  not asked, unreachable: %s\n", n)
	}
	for _, x := range v.Violations {
		fmt.Fprintf(w, "  %s\n", x)
	}
}

// compare reads the ledger's sessions again and judges the whole. Pushes are
// left out: those that arrived after the ledger was written are not in it. unread is
// why a session's end is not judged: the cluster did not answer.
func (u *user) compare(ctx context.Context, h History) (found Findings, unread, err error) {
	c, err := u.dial(ctx, "")
	if err != nil {
		return found, nil, err
	}
	defer c.Close()
	var ops []Op
	for _, o := range h.Ops {
		if o.Kind != kindPush {
			ops = append(ops, o)
		}
	}
	h.Ops, h.Deliveries, h.Interrupted = ops, nil, true
	finals := make([]Final, len(h.Keys))
	var g errgroup.Group
	g.SetLimit(openersMax)
	for i, k := range h.Keys {
		g.Go(func() error {
			finals[i] = finalRead(ctx, c, k, "any", u.timeout)
			return nil
		})
	}
	_ = g.Wait()
	if err := ctx.Err(); err != nil {
		return found, nil, err
	}
	for _, f := range finals {
		if f.cause != nil && exitCode(f.cause) == exitNoCluster {
			unread = fmt.Errorf("session %s could not be read again: %w", f.Session, f.cause)
			continue
		}
		h.Finals = append(h.Finals, f)
	}
	return check(&h), unread, nil
}

// finalRead reads a session's counter and register through c.
func finalRead(ctx context.Context, c *baton.Client, k SessionKey, through string, limit time.Duration) Final {
	out := Final{Session: k.Session, Through: through}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := func() error {
		secret, err := hex.DecodeString(k.Secret)
		if err != nil {
			return err
		}
		s, err := c.Resume(ctx, k.Session, secret)
		if err != nil {
			return err
		}
		if out.Counter, _, err = readVersion(ctx, s, keyCounter); err != nil {
			return err
		}
		if out.Version, _, err = readVersion(ctx, s, keyRegister); err != nil {
			return err
		}
		return s.Detach(ctx)
	}()
	if err != nil {
		out.Err, out.cause = err.Error(), err
	}
	return out
}
