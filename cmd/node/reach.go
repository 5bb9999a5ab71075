package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

const (
	defaultMgmtAddr = "127.0.0.1:7401"
	defaultPKI      = "pki"
	defaultTimeout  = 10 * time.Second
	secretBytes     = 32
)

// reach is how a command finds a cluster.
type reach struct {
	addrs   []string
	pki     string
	timeout time.Duration
}

func (r *reach) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&r.addrs, "addr", []string{defaultMgmtAddr}, "management addresses HOST:PORT[,…] of any nodes")
	f.StringVar(&r.pki, "pki", defaultPKI, "directory with the cluster's certificates")
	f.DurationVar(&r.timeout, "timeout", defaultTimeout, "give up on an answer after this long")
}

// admin dials the management plane.
func (r *reach) admin(ctx context.Context) (*baton.Admin, error) {
	if err := checkAddrs("--addr", r.addrs); err != nil {
		return nil, err
	}
	a, err := baton.DialAdmin(ctx, baton.AdminConfig{Addrs: r.addrs, PKI: r.pki})
	if err != nil {
		return nil, localError{misused(err, "baton")} // nothing was dialled yet: it is about the files
	}
	return a, nil
}

// ask dials, and calls fn within the time limit.
func (r *reach) ask(ctx context.Context, fn func(context.Context, *baton.Admin) error) error {
	a, err := r.admin(ctx)
	if err != nil {
		return err
	}
	defer a.Close()
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	return fn(ctx, a)
}

// checkAddrs refuses what cannot be an address before anything is dialled.
func checkAddrs(flag string, addrs []string) error {
	var faults []error
	for _, a := range addrs {
		if _, port, err := net.SplitHostPort(a); err != nil {
			faults = append(faults, fmt.Errorf("%s %q: want HOST:PORT", flag, a))
		} else if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
			faults = append(faults, fmt.Errorf("%s %q: the port must be a number up to 65535", flag, a))
		}
	}
	if len(addrs) == 0 {
		faults = append(faults, fmt.Errorf("%s: at least one address is needed", flag))
	}
	if len(faults) > 0 {
		return usageError{errors.Join(faults...), "baton"}
	}
	return nil
}

// userAddrs lists where clients connect, node by node, of those reachable.
func userAddrs(st baton.Status) []string {
	var out []string
	for _, n := range st.Nodes {
		if n.Endpoint.UserPort != 0 && n.State != "left" && n.State != "fenced" {
			out = append(out, net.JoinHostPort(n.Endpoint.Host, strconv.Itoa(n.Endpoint.UserPort)))
		}
	}
	return out
}

// user is how a session command reaches the user plane.
type user struct {
	reach
	userAddrs  []string
	secretFile string
}

func (u *user) flags(cmd *cobra.Command) {
	u.reach.flags(cmd)
	cmd.Flags().StringSliceVar(&u.userAddrs, "user-addr", nil, "user addresses HOST:PORT[,…] of any nodes (default: asked of --addr)")
}

func (u *user) secretFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&u.secretFile, "secret-file", "", "file with the session's secret; - is standard input (default: BATON_SECRET, else standard input)")
}

// dial connects a client. node, if set, names the only node to connect to.
func (u *user) dial(ctx context.Context, node string) (*baton.Client, error) {
	addrs := u.userAddrs
	if len(addrs) == 0 || node != "" {
		var st baton.Status
		if err := u.ask(ctx, func(ctx context.Context, a *baton.Admin) (err error) {
			st, err = a.Status(ctx)
			return err
		}); err != nil {
			return nil, err
		}
		addrs = userAddrs(st)
		if node != "" {
			var err error
			if addrs, err = addrsOf(st, node); err != nil {
				return nil, err
			}
		}
	}
	if err := checkAddrs("--user-addr", addrs); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, u.timeout)
	defer cancel()
	c, err := baton.Dial(ctx, baton.ClientConfig{Addrs: addrs, PKI: u.pki})
	if baton.CodeOf(err).Label() == "not_initialised" { // the files in --pki
		return nil, localError{err}
	}
	return c, misused(err, "baton")
}

func addrsOf(st baton.Status, node string) ([]string, error) {
	var names []string
	for _, n := range st.Nodes {
		if n.Name == node || n.ID == node {
			return []string{net.JoinHostPort(n.Endpoint.Host, strconv.Itoa(n.Endpoint.UserPort))}, nil
		}
		names = append(names, n.Name)
	}
	return nil, usageError{fmt.Errorf("no node is called %q; there are %s", node, strings.Join(names, ", ")), "baton"}
}

// secret reads the session's secret from the file, the environment or standard
// input, in this order: never from an argument, which other users of the
// machine could read.
func (p *program) secret(file string) ([]byte, error) {
	var text string
	switch env, ok := p.Env("BATON_SECRET"); {
	case file != "" && file != "-":
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, usageError{fmt.Errorf("--secret-file: %w", err), "baton session"}
		}
		text = string(raw)
	case ok && file == "":
		text = env
	default:
		raw, err := io.ReadAll(io.LimitReader(p.Stdin, 4096))
		if err != nil {
			return nil, usageError{fmt.Errorf("reading the secret from standard input: %w", err), "baton session"}
		}
		text = string(raw)
	}
	text = strings.TrimSpace(text)
	if text == "" {
		return nil, usageError{errors.New("a session's secret is needed: set BATON_SECRET, or give --secret-file or standard input"), "baton session"}
	}
	secret, err := hex.DecodeString(text)
	if err != nil || len(secret) != secretBytes {
		return nil, usageError{fmt.Errorf("a secret is %d hexadecimal digits, as `baton session open` prints them", 2*secretBytes), "baton session"}
	}
	return secret, nil
}
