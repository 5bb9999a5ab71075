package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

// eventJSON is one line of `session attach --json`.
type eventJSON struct {
	Event   string    `json:"event"` // attached, push, move
	At      time.Time `json:"at"`
	Epoch   uint64    `json:"epoch"`
	Owner   string    `json:"owner,omitempty"`
	From    string    `json:"from,omitempty"`
	Planned *bool     `json:"planned,omitempty"`
	PauseUS *int64    `json:"pause_us,omitempty"`
	Seq     uint64    `json:"seq,omitempty"`
	Payload string    `json:"payload,omitempty"`
	Base64  string    `json:"payload_base64,omitempty"`
}

func (p *program) sessionAttachCmd() *cobra.Command {
	var u user
	cmd := &cobra.Command{
		Use:     "attach ID",
		Short:   "Follow a session's pushes and moves until Ctrl-C",
		Example: "  BATON_SECRET=… baton session attach cart-7 --json",
		Args:    cobra.ExactArgs(1),
	}
	u.flags(cmd)
	u.secretFlag(cmd)
	cmd.RunE = p.run(func(ctx context.Context, args []string) error {
		secret, err := p.secret(u.secretFile)
		if err != nil {
			return err
		}
		c, err := u.dial(ctx, "")
		if err != nil {
			return err
		}
		defer c.Close()
		dial, cancel := context.WithTimeout(ctx, u.timeout)
		s, err := c.Resume(dial, args[0], secret)
		cancel()
		if err != nil {
			return err
		}
		if err := p.follow(ctx, s); err != nil {
			return err
		}
		leave, cancel := context.WithTimeout(context.Background(), shutdownGrace)
		defer cancel()
		_ = s.Detach(leave)
		return nil
	})
	return cmd
}

// follow prints a session's events until ctx or the session ends; the latter is an error.
func (p *program) follow(ctx context.Context, s *baton.Session) error {
	var mu sync.Mutex // handlers of pushes and moves may run at once
	show := func(e eventJSON, text string) {
		mu.Lock()
		defer mu.Unlock()
		e.At = time.Now()
		p.print(e, func(w io.Writer) { fmt.Fprintln(w, text) })
	}
	s.OnPush(func(m baton.Push) {
		e := eventJSON{Event: "push", Epoch: m.Epoch, Seq: m.Seq}
		if utf8.Valid(m.Payload) {
			e.Payload = string(m.Payload)
		} else {
			e.Base64 = base64.StdEncoding.EncodeToString(m.Payload)
		}
		show(e, fmt.Sprintf("push %d: %q", m.Seq, m.Payload))
	})
	s.OnMove(func(m baton.Move) {
		pause := m.Pause.Microseconds()
		how := "failed over"
		if m.Planned {
			how = "moved"
		}
		show(eventJSON{Event: "move", Epoch: m.Epoch, From: m.From.Name, Owner: m.To.Name, Planned: &m.Planned, PauseUS: &pause},
			fmt.Sprintf("%s from %s to %s, epoch %d, paused %s", how, m.From.Name, m.To.Name, m.Epoch, micros(pause)))
	})
	show(eventJSON{Event: "attached", Epoch: s.Epoch(), Owner: s.Owner().Name},
		fmt.Sprintf("attached to %s, owner %s, epoch %d", s.ID(), s.Owner().Name, s.Epoch()))
	select {
	case <-ctx.Done():
		return nil
	case <-s.Done():
		return s.Err()
	}
}

func (p *program) sessionListCmd() *cobra.Command {
	var (
		r     reach
		owner string
		limit int
	)
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List sessions",
		Example: "  baton session list --owner n1 --limit 20 --json",
		Args:    cobra.NoArgs,
	}
	r.flags(cmd)
	cmd.Flags().StringVar(&owner, "owner", "", "only those that this node owns")
	cmd.Flags().IntVar(&limit, "limit", 100, "at most this many")
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		if limit < 1 || limit > baton.SessionsListMax {
			return usageError{fmt.Errorf("--limit must be 1 to %d", baton.SessionsListMax), "baton session list"}
		}
		return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			list, err := a.Sessions(ctx, baton.SessionFilter{Owner: owner, Limit: limit})
			if err != nil {
				return err
			}
			if p.global.json {
				for _, s := range list {
					p.printJSON(s)
				}
				return nil
			}
			var rows [][]string
			for _, s := range list {
				rows = append(rows, []string{s.ID, s.Owner, num(s.Epoch), num(s.Attached), expiry(s), size(s.Bytes)})
			}
			table(p.Stdout, "ID OWNER EPOCH ATTACHED EXPIRES_IN BYTES", rows)
			return nil
		})
	})
	return cmd
}

func expiry(s baton.SessionInfo) string {
	if s.ExpiresInS < 0 {
		return "never"
	}
	return (time.Duration(s.ExpiresInS) * time.Second).String()
}

func (p *program) sessionShowCmd() *cobra.Command {
	var r reach
	cmd := &cobra.Command{
		Use:     "show ID",
		Short:   "Show a session's row",
		Example: "  baton session show cart-7 --json",
		Args:    cobra.ExactArgs(1),
	}
	r.flags(cmd)
	cmd.RunE = p.run(func(ctx context.Context, args []string) error {
		return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			s, err := a.Session(ctx, args[0])
			if err != nil {
				return err
			}
			p.print(s, func(w io.Writer) {
				owner := s.Owner
				if owner == "" {
					owner = "none"
				}
				fmt.Fprintf(w, "session %s\nowner %s (incarnation %d), epoch %d\nattached %d, ttl %s, expires in %s\n",
					s.ID, owner, s.Incarnation, s.Epoch, s.Attached, time.Duration(s.TTLS)*time.Second, expiry(s))
				fmt.Fprintf(w, "%s, next seq %d, acknowledged %d, migration %d, state %s\n", size(s.Bytes), s.NextSeq, s.AckedSeq, s.Migration, s.StateHash)
			})
			return nil
		})
	})
	return cmd
}

func (p *program) sessionExplainCmd() *cobra.Command {
	var r reach
	cmd := &cobra.Command{
		Use:     "explain ID",
		Short:   "Tell every owner a session had: when, why, by whom",
		Example: "  baton session explain cart-7",
		Args:    cobra.ExactArgs(1),
	}
	r.flags(cmd)
	cmd.RunE = p.run(func(ctx context.Context, args []string) error {
		return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			e, err := a.Explain(ctx, args[0])
			if err != nil {
				return err
			}
			e.Changes = nonNil(e.Changes)
			p.print(e, func(w io.Writer) {
				var rows [][]string
				for _, c := range e.Changes {
					rows = append(rows, []string{num(c.Epoch), c.From, c.Owner, num(c.Incarnation), num(c.Index), c.At.Format("15:04:05.000"), c.Reason, c.By, num(c.Migration), micros(c.PauseUS)})
				}
				table(w, "EPOCH FROM OWNER INCARNATION INDEX AT REASON BY MIGRATION PAUSE", rows)
			})
			return nil
		})
	})
	return cmd
}
