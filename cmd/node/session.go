package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

func (p *program) sessionCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "session",
		Short: "Open, use, follow and explain sessions",
		Long: "Sessions are reached through any node. Using one attaches this command to it: a client\n" +
			"that is attached to a session which was not opened as shared is displaced.",
		Example: "  baton session open --id cart-7\n  BATON_SECRET=… baton session put cart-7 colour red",
		Args:    cobra.ArbitraryArgs,
		RunE:    needSubcommand,
	}
	cmd.AddCommand(
		p.sessionOpenCmd(), p.sessionPutCmd(), p.sessionGetCmd(), p.sessionDeleteCmd(),
		p.sessionCasCmd(), p.sessionIncrCmd(), p.sessionCloseCmd(), p.sessionAttachCmd(),
		p.sessionListCmd(), p.sessionShowCmd(), p.sessionExplainCmd(),
	)
	return cmd
}

type openedJSON struct {
	ID     string `json:"id"`
	Secret string `json:"secret"`
	Owner  string `json:"owner"`
	Epoch  uint64 `json:"epoch"`
}

func (p *program) sessionOpenCmd() *cobra.Command {
	var (
		u        user
		id, node string
		ttl      time.Duration
		shared   bool
	)
	cmd := &cobra.Command{
		Use:     "open",
		Short:   "Open a session and leave it detached",
		Example: "  baton session open --id cart-7 --ttl 1h --node n2 --json",
		Args:    cobra.NoArgs,
	}
	u.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&id, "id", "", "the session's id (default: random)")
	f.DurationVar(&ttl, "ttl", time.Hour, "how long it lives while nobody is attached")
	f.StringVar(&node, "node", "", "open it on this node")
	f.BoolVar(&shared, "shared", false, "let several clients attach at once")
	f.StringVar(&u.secretFile, "secret-file", "", "file with a secret of your own; - is standard input (default: BATON_SECRET, else a random one)")
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		var secret []byte
		if _, env := p.Env("BATON_SECRET"); env || u.secretFile != "" {
			var err error
			if secret, err = p.secret(u.secretFile); err != nil {
				return err
			}
		}
		if id == "" {
			id = randomID()
		}
		c, err := u.dial(ctx, node)
		if err != nil {
			return err
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(ctx, u.timeout)
		defer cancel()
		s, err := c.Open(ctx, baton.OpenOptions{ID: id, Secret: secret, TTL: ttl, Shared: shared, Node: node})
		if err != nil {
			return err
		}
		if node != "" && s.Owner().Name != node && s.Owner().ID != node {
			p.note("%s did not answer in time; the session was opened on %s", node, s.Owner().Name)
		}
		out := openedJSON{s.ID(), hex.EncodeToString(s.Secret()), s.Owner().Name, s.Epoch()}
		if err := s.Detach(ctx); err != nil {
			return err
		}
		p.print(out, func(w io.Writer) {
			fmt.Fprintf(w, "session %s, owner %s, epoch %d\nsecret %s\n", out.ID, out.Owner, out.Epoch, out.Secret)
		})
		return nil
	})
	return cmd
}

// randomID is 128 random bits.
func randomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// onSession makes a command that attaches to session ID, does one thing and
// leaves.
func (p *program) onSession(cmd *cobra.Command, do func(ctx context.Context, s *baton.Session, args []string) error) *cobra.Command {
	var u user
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
		ctx, cancel := context.WithTimeout(ctx, u.timeout)
		defer cancel()
		s, err := c.Resume(ctx, args[0], secret)
		if err != nil {
			return err
		}
		if err := do(ctx, s, args[1:]); err != nil {
			return err
		}
		// Left behind, the attachment would end with the connection anyway.
		_ = s.Detach(ctx)
		return nil
	})
	return cmd
}

type wroteJSON struct {
	Epoch uint64 `json:"epoch"`
	Owner string `json:"owner"`
	Index uint64 `json:"index"`
}

func wrote(r baton.Reply) wroteJSON { return wroteJSON{r.Epoch, r.Node, r.Change} }

func (p *program) sessionPutCmd() *cobra.Command {
	return p.onSession(&cobra.Command{
		Use:     "put ID KEY VALUE",
		Short:   "Set a key",
		Example: "  BATON_SECRET=… baton session put cart-7 colour red",
		Args:    cobra.ExactArgs(3),
	}, func(ctx context.Context, s *baton.Session, args []string) error {
		r, err := s.Put(ctx, args[0], []byte(args[1]))
		if err != nil {
			return err
		}
		p.print(wrote(r), func(w io.Writer) { fmt.Fprintln(w, "ok") })
		return nil
	})
}

// gotJSON is a value read. Bytes that are not text are in value_base64.
type gotJSON struct {
	Value  string `json:"value"`
	Base64 string `json:"value_base64,omitempty"`
	Found  bool   `json:"found"`
	Epoch  uint64 `json:"epoch"`
	Owner  string `json:"owner"`
	Index  uint64 `json:"index"`
	Leased bool   `json:"leased"` // the owner answered under its lease
}

// confirmedFlag is for commands that read.
func confirmedFlag(cmd *cobra.Command, confirmed *bool) {
	cmd.Flags().BoolVar(confirmed, "confirmed", false, "have reads confirmed by a majority of the voters, not answered under the owner's lease")
}

func queryOptions(confirmed bool) []baton.QueryOption {
	if confirmed {
		return []baton.QueryOption{baton.Confirmed}
	}
	return nil
}

func (p *program) sessionGetCmd() *cobra.Command {
	var confirmed bool
	cmd := &cobra.Command{
		Use:     "get ID KEY",
		Short:   "Read a key, linearizably",
		Example: "  BATON_SECRET=… baton session get cart-7 colour --json",
		Args:    cobra.ExactArgs(2),
	}
	confirmedFlag(cmd, &confirmed)
	return p.onSession(cmd, func(ctx context.Context, s *baton.Session, args []string) error {
		v, err := s.Get(ctx, args[0], queryOptions(confirmed)...)
		if err != nil {
			return err
		}
		out := gotJSON{Found: v.Found, Epoch: v.Epoch, Owner: v.Owner, Index: v.Index, Leased: v.Leased}
		if utf8.Valid(v.Value) {
			out.Value = string(v.Value)
		} else {
			out.Base64 = base64.StdEncoding.EncodeToString(v.Value)
		}
		p.print(out, func(w io.Writer) {
			if !v.Found {
				p.note("no such key")
				return
			}
			fmt.Fprintf(w, "%s\n", v.Value)
		})
		return nil
	})
}

type deletedJSON struct {
	Found bool `json:"found"`
	wroteJSON
}

func (p *program) sessionDeleteCmd() *cobra.Command {
	return p.onSession(&cobra.Command{
		Use:     "delete ID KEY",
		Short:   "Delete a key",
		Example: "  BATON_SECRET=… baton session delete cart-7 colour",
		Args:    cobra.ExactArgs(2),
	}, func(ctx context.Context, s *baton.Session, args []string) error {
		found, r, err := s.Delete(ctx, args[0])
		if err != nil {
			return err
		}
		p.print(deletedJSON{found, wrote(r)}, func(w io.Writer) { fmt.Fprintln(w, "ok") })
		return nil
	})
}

type casJSON struct {
	Swapped bool `json:"swapped"`
	wroteJSON
}

func (p *program) sessionCasCmd() *cobra.Command {
	return p.onSession(&cobra.Command{
		Use:     "cas ID KEY OLD NEW",
		Short:   "Set a key to NEW if it is OLD; otherwise change nothing and exit 1",
		Example: "  BATON_SECRET=… baton session cas cart-7 colour red blue",
		Args:    cobra.ExactArgs(4),
	}, func(ctx context.Context, s *baton.Session, args []string) error {
		ok, r, err := s.CompareAndSet(ctx, args[0], []byte(args[1]), []byte(args[2]))
		if err != nil {
			return err
		}
		if p.global.json || ok {
			p.print(casJSON{ok, wrote(r)}, func(w io.Writer) { fmt.Fprintln(w, "ok") })
		}
		if !ok {
			return silent{localError{errors.New("the value is another one; nothing was changed")}}
		}
		return nil
	})
}

// silent is an error whose JSON was printed already.
type silent struct{ error }

func (e silent) Unwrap() error { return e.error }

type incrJSON struct {
	Value int64 `json:"value"`
	wroteJSON
}

func (p *program) sessionIncrCmd() *cobra.Command {
	return p.onSession(&cobra.Command{
		Use:     "incr ID KEY [N]",
		Short:   "Add N (default 1) to a counter",
		Example: "  BATON_SECRET=… baton session incr cart-7 items 2\n  BATON_SECRET=… baton session incr cart-7 items -- -2",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.RangeArgs(2, 3)(cmd, args); err != nil {
				return err
			}
			if len(args) == 3 {
				if _, err := strconv.ParseInt(args[2], 10, 64); err != nil {
					return fmt.Errorf("N must be an integer, not %q", args[2])
				}
			}
			return nil
		},
	}, func(ctx context.Context, s *baton.Session, args []string) error {
		n := int64(1)
		if len(args) == 2 {
			n, _ = strconv.ParseInt(args[1], 10, 64) // checked with the arguments
		}
		v, r, err := s.Incr(ctx, args[0], n)
		if err != nil {
			return err
		}
		p.print(incrJSON{v, wrote(r)}, func(w io.Writer) { fmt.Fprintln(w, v) })
		return nil
	})
}

func (p *program) sessionCloseCmd() *cobra.Command {
	return p.onSession(&cobra.Command{
		Use:     "close ID",
		Short:   "Close a session for good",
		Example: "  BATON_SECRET=… baton session close cart-7",
		Args:    cobra.ExactArgs(1),
	}, func(ctx context.Context, s *baton.Session, _ []string) error {
		if err := s.Close(ctx); err != nil {
			return err
		}
		p.print(map[string]any{"id": s.ID(), "closed": true}, func(w io.Writer) { fmt.Fprintln(w, "closed") })
		return nil
	})
}
