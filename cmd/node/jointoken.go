package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

func (p *program) joinTokenCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "join-token",
		Short:   "Tokens with which new nodes get their certificates",
		Example: "  baton join-token create > token\n  baton join-token list",
		Args:    cobra.ArbitraryArgs,
		RunE:    needSubcommand,
	}
	cmd.AddCommand(p.joinTokenCreateCmd(), p.joinTokenListCmd(), p.joinTokenRevokeCmd())
	return cmd
}

// createdTokenJSON is the token with its secret, which is told this once.
type createdTokenJSON struct {
	baton.JoinTokenInfo
	Token string `json:"token"`
	// ExpiresAt is an estimate: the cluster's own time stands still without a leader.
	ExpiresAt time.Time `json:"expires_at"`
}

func (p *program) joinTokenCreateCmd() *cobra.Command {
	var (
		r    reach
		life time.Duration
		name string
	)
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a token for one node",
		Long: "Prints a token with which one node gets its certificate and the cluster's secret when it is started with\n" +
			"--join-token-file. It is good for one node and ends by itself. Whoever has it can become a node: hand it\n" +
			"over as you would a password. A node that runs must have ca.key in its --pki directory, to issue with.",
		Example: "  baton join-token create --name n4 > token\n" +
			"  baton start --name n4 --data ./n4 --join 10.0.0.1:7401 --join-token-file token --pki ./pki",
		Args: cobra.NoArgs,
	}
	r.flags(cmd)
	cmd.Flags().DurationVar(&life, "ttl", baton.JoinTokenLife, "how long it can be used, 1s to 744h")
	cmd.Flags().StringVar(&name, "name", "", "name of the only node that may use it (default: any that is not taken)")
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		if life < time.Second || life > baton.JoinTokenLifeMax {
			return usageError{fmt.Errorf("--ttl must be 1s to %v", baton.JoinTokenLifeMax), "baton join-token create"}
		}
		return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			text, info, err := a.CreateJoinToken(ctx, baton.JoinTokenRequest{Life: life, Name: name})
			if err != nil {
				return err
			}
			ends := time.Now().Add(time.Duration(info.ExpiresInUS) * time.Microsecond).UTC().Truncate(time.Second)
			p.print(createdTokenJSON{info, text, ends}, func(w io.Writer) { fmt.Fprintln(w, text) })
			p.note("token %s is good for one node until %s; it is not shown again", info.ID, ends.Local().Format(time.DateTime))
			return nil
		})
	})
	return cmd
}

func (p *program) joinTokenListCmd() *cobra.Command {
	var r reach
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the tokens that are pending, and what became of the others of the last day; never a secret",
		Example: "  baton join-token list --json",
		Args:    cobra.NoArgs,
	}
	r.flags(cmd)
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error {
		return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			list, err := a.JoinTokens(ctx)
			if err == nil {
				p.printJoinTokens(list)
			}
			return err
		})
	})
	return cmd
}

func (p *program) joinTokenRevokeCmd() *cobra.Command {
	var r reach
	cmd := &cobra.Command{
		Use:     "revoke ID",
		Short:   "Make a token useless",
		Example: "  baton join-token revoke 5f0c2a9d33b14e7c8d1f60a2b7c9e4d1",
		Args:    cobra.ExactArgs(1),
	}
	r.flags(cmd)
	cmd.RunE = p.run(func(ctx context.Context, args []string) error {
		return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			info, err := a.RevokeJoinToken(ctx, args[0])
			if err == nil {
				p.printJoinTokens([]baton.JoinTokenInfo{info})
			}
			return err
		})
	})
	return cmd
}

// printJoinTokens prints one object a line with --json.
func (p *program) printJoinTokens(list []baton.JoinTokenInfo) {
	if p.global.json {
		for _, t := range list {
			p.printJSON(t)
		}
		return
	}
	rows := make([][]string, 0, len(list))
	for _, t := range list {
		left := ""
		if t.State == "pending" {
			left = days(t.ExpiresInUS)
		}
		rows = append(rows, []string{t.ID, t.State, t.Name, t.Node, left, t.At.Local().Format(time.DateTime), t.By})
	}
	table(p.Stdout, "ID STATE FOR USED-BY GOOD-FOR MADE BY", rows)
}

// enrol gets a node its certificate where it has a token and no certificate yet.
func (p *program) enrol(ctx context.Context, s startFlags, log *slog.Logger) error {
	if baton.Enrolled(s.pki, s.name) {
		return nil // the token may be gone by now
	}
	token, err := p.joinToken(s.joinTokenFile)
	if err != nil || token == "" {
		return err
	}
	host := s.advertiseHost
	if host == "" {
		host, _, _ = net.SplitHostPort(s.mgmtAddr)
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			host = ""
		}
	}
	return baton.Enrol(ctx, baton.EnrolConfig{Token: token, Addrs: s.join, Name: s.name, Host: host, PKI: s.pki, Log: log})
}

// joinToken reads a token from the file, else from the environment; none: empty.
func (p *program) joinToken(file string) (string, error) {
	text, _ := p.Env("BATON_JOIN_TOKEN")
	if file != "" {
		in := p.Stdin
		if file != "-" {
			f, err := os.Open(file)
			if err != nil {
				return "", usageError{fmt.Errorf("--join-token-file: %w", err), "baton start"}
			}
			defer f.Close()
			in = f
		}
		raw, err := io.ReadAll(io.LimitReader(in, 4096))
		if err != nil {
			return "", usageError{fmt.Errorf("--join-token-file: %w", err), "baton start"}
		}
		if text = strings.TrimSpace(string(raw)); text == "" {
			return "", usageError{errors.New("--join-token-file is empty"), "baton start"}
		}
	}
	return text, nil
}
