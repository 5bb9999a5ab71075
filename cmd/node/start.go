package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

// startFlags are the settings of a node.
type startFlags struct {
	name, data, userAddr, mgmtAddr                    string
	advertiseHost, advertiseUser, advertiseMgmt       string
	http, pki, zone, profile, app, logLevel, logStore string
	join                                              []string
	expect, targetVoters                              int
	replaceAfter                                      time.Duration
	roles                                             []string
	capacity, byteBudget                              uint64
	confirmedReads                                    bool
	confirm                                           []string
	confirmWithin, lease                              time.Duration
	joinTokenFile                                     string
}

const (
	defaultUserListen = "0.0.0.0:7400"
	defaultMgmtListen = "0.0.0.0:7401"
)

func (p *program) startCmd() *cobra.Command {
	var s startFlags
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Run a node in the foreground",
		Long: "Runs a node until SIGTERM, which drains its sessions, hands leadership on and stops;\n" +
			"the node stays a voter. A second SIGTERM stops at once.",
		Example: "  baton start --name n1 --data ./n1 --user-addr 127.0.0.1:7400 --mgmt-addr 127.0.0.1:7401 \\\n" +
			"    --join 127.0.0.1:7401,127.0.0.1:7411,127.0.0.1:7421 --bootstrap-expect 3 --pki ./pki --profile local",
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringVar(&s.name, "name", "", "the node's name; PKI holds NAME.crt and NAME.key")
	f.StringVar(&s.data, "data", "", "data directory, for this node alone")
	f.StringVar(&s.userAddr, "user-addr", defaultUserListen, "where clients connect (QUIC, UDP)")
	f.StringVar(&s.mgmtAddr, "mgmt-addr", defaultMgmtListen, "where nodes and operators connect (TCP and UDP)")
	f.StringVar(&s.http, "http", "", "HTTP port with /livez, /readyz, /metrics and, on loopback, profiles, for example 127.0.0.1:7402 (default: none)")
	f.StringVar(&s.advertiseHost, "advertise-host", "", "host that others reach this node at (default: that of --mgmt-addr)")
	f.StringVar(&s.advertiseUser, "advertise-user-addr", "", "whole user address, for a node behind a forwarder")
	f.StringVar(&s.advertiseMgmt, "advertise-mgmt-addr", "", "whole management address, for a node behind a forwarder")
	f.StringSliceVar(&s.join, "join", nil, "management addresses of the cluster's nodes, this one's may be among them")
	f.StringVar(&s.joinTokenFile, "join-token-file", "", "file with the token of baton join-token create, for a node whose certificate is not in --pki yet;\n- is standard input (default: BATON_JOIN_TOKEN)")
	f.IntVar(&s.expect, "bootstrap-expect", 0, "how many empty nodes form a new cluster together (0: only join one)")
	f.IntVar(&s.targetVoters, "target-voters", 0, "how many servers vote; further ones follow, as spares (0: three, or --bootstrap-expect if that is more)")
	f.DurationVar(&s.replaceAfter, "replace-dead-after", 0, "how long a voter must be dead before a spare gets its vote (0: 5m; negative: never)")
	f.StringVar(&s.pki, "pki", defaultPKI, "directory with the cluster's certificates")
	f.StringVar(&s.zone, "zone", "", "failure zone")
	f.StringVar(&s.profile, "profile", "lan", "timing: local, lan or wan")
	f.StringVar(&s.app, "app", "kv", "application: kv or none")
	f.StringSliceVar(&s.roles, "role", []string{"server", "worker"}, "server,worker: votes and owns sessions; worker: does not vote")
	f.BoolVar(&s.confirmedReads, "confirmed-reads", false, "have every read confirmed by a majority of the voters: where a hypervisor stops machines without their noticing, on every node")
	f.Uint64Var(&s.capacity, "capacity", 0, "relative weight when sessions are placed (0 counts as 1)")
	f.Uint64Var(&s.byteBudget, "byte-budget", 0, "what all sessions may hold together, in bytes, set by the first leader (0: the default)")
	f.StringSliceVar(&s.confirm, "confirm", nil, "rules for which moves and jobs wait for an operator, the first that fits: manual or auto, then\nany of reason=R[|R], priority=N[-N], by=NAME[*]; the same on all nodes")
	f.DurationVar(&s.confirmWithin, "confirm-within", 0, "how long they wait (0: 5m)")
	f.DurationVar(&s.lease, "lease", 0, "how long leases last, 200ms to 5s, set by the first leader; then see baton lease set (0: as the profile has it)")
	f.StringVar(&s.logStore, "log-store", "", "what keeps the log: wal or bolt (default: what --data holds, wal in a new one)")
	f.StringVar(&s.logLevel, "log-level", "warn", "debug, info, warn or error")
	cmd.RunE = p.run(func(ctx context.Context, _ []string) error { return p.start(ctx, s) })
	return cmd
}

// check reports all faults of the settings at once.
func (s *startFlags) check() (*baton.Mux, slog.Level, error) {
	var faults []error
	if s.name == "" {
		faults = append(faults, errors.New("--name is needed"))
	}
	if s.data == "" {
		faults = append(faults, errors.New("--data is needed"))
	}
	for _, a := range []struct {
		flag  string
		addrs []string
	}{{"--http", nonEmpty(s.http)}, {"--user-addr", []string{s.userAddr}}, {"--mgmt-addr", []string{s.mgmtAddr}}, {"--join", s.join}} {
		if len(a.addrs) > 0 {
			faults = append(faults, checkAddrs(a.flag, a.addrs))
		}
	}
	switch {
	case s.expect < 0:
		faults = append(faults, errors.New("--bootstrap-expect must not be negative"))
	case s.targetVoters < 0:
		faults = append(faults, errors.New("--target-voters must not be negative"))
	case s.expect == 0 && len(s.join) == 0:
		faults = append(faults, errors.New("--join is needed, or --bootstrap-expect 1 for a cluster of one"))
	case s.expect > 1 && len(s.join) == 0:
		faults = append(faults, errors.New("--bootstrap-expect above 1 needs --join"))
	}
	if !slices.Contains(s.roles, "worker") || slices.ContainsFunc(s.roles, func(r string) bool { return r != "worker" && r != "server" }) {
		faults = append(faults, fmt.Errorf("--role %q: want server,worker or worker", strings.Join(s.roles, ",")))
	}
	switch s.profile {
	case "local", "lan", "wan":
	default:
		faults = append(faults, fmt.Errorf("--profile %q: want local, lan or wan", s.profile))
	}
	switch s.logStore {
	case "", "wal", "bolt":
	default:
		faults = append(faults, fmt.Errorf("--log-store %q: want wal or bolt", s.logStore))
	}
	mux := baton.NewMux()
	switch s.app {
	case "kv":
		mux = baton.KV()
	case "none":
	default:
		faults = append(faults, fmt.Errorf("--app %q: want kv or none", s.app))
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(strings.ToUpper(s.logLevel))); err != nil {
		faults = append(faults, fmt.Errorf("--log-level %q: want debug, info, warn or error", s.logLevel))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, 0, usageError{err, "baton start"}
	}
	return mux, level, nil
}

// killedCode is what a node exits with that a drill ended: as by SIGKILL.
const killedCode = 128 + 9

type startedJSON struct {
	Name     string `json:"name"`
	ID       string `json:"id"`
	UserAddr string `json:"user_addr"`
	MgmtAddr string `json:"mgmt_addr"`
}

func (p *program) start(ctx context.Context, s startFlags) error {
	mux, level, err := s.check()
	if err != nil {
		return err
	}
	if p.Calm != nil {
		p.Calm()
	}
	raiseHeapFloor()
	log := slog.New(slog.NewTextHandler(p.Stderr, &slog.HandlerOptions{Level: level}))
	if err := p.enrol(ctx, s, log); err != nil {
		if ctx.Err() != nil {
			return nil // told to stop before anybody answered
		}
		return startError(err)
	}
	node, err := baton.Open(ctx, baton.Config{
		Name: s.name, Data: s.data, UserAddr: s.userAddr, MgmtAddr: s.mgmtAddr,
		AdvertiseHost: s.advertiseHost, AdvertiseUser: s.advertiseUser, AdvertiseMgmt: s.advertiseMgmt, PKI: s.pki, Zone: s.zone, Profile: s.profile,
		HTTPAddr: s.http, TargetVoters: s.targetVoters, ReplaceDeadAfter: s.replaceAfter,
		Join: s.join, Expect: s.expect, Mux: mux, ByteBudget: s.byteBudget, ConfirmedReads: s.confirmedReads,
		Confirm: s.confirm, ConfirmWithin: s.confirmWithin, Lease: s.lease,
		OnKill:   func() { os.Exit(killedCode) },
		NonVoter: !slices.Contains(s.roles, "server"), Capacity: s.capacity, Version: version, LogStore: s.logStore,
		Log: log,
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil // told to stop before it had joined
		}
		return startError(misused(err, "baton start"))
	}
	p.print(startedJSON{node.Name(), node.ID(), node.UserAddr(), node.MgmtAddr()}, func(w io.Writer) {
		fmt.Fprintf(w, "node %s (%s) serves clients on %s, management on %s\n", node.Name(), node.ID(), node.UserAddr(), node.MgmtAddr())
	})
	if p.Fit != nil {
		go p.Fit(ctx, node.DiskWrites)
	}
	select {
	case <-node.Done():
		err := node.Err()
		_ = node.Close()
		if err == nil && node.Left() {
			p.note("the node has left its cluster for good")
			return nil
		}
		if err == nil {
			err = errors.New("the node stopped by itself")
		}
		return localError{err}
	case <-ctx.Done():
	}
	p.note("draining; a second signal stops at once")
	return p.stopNode(node)
}

// stopNode shuts the node down in an orderly way, or at once at the second
// signal. Shutdown has bounds of its own; none is set here.
func (p *program) stopNode(node *baton.Node) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-p.again:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := node.Shutdown(ctx)
	cut := ctx.Err() != nil
	if closeErr := node.Close(); err == nil {
		err = closeErr
	}
	if err != nil && !cut {
		return localError{err}
	}
	return nil
}

// startError sorts what keeps a node from starting: the cluster's refusals
// exit 4, everything else is this machine's.
func startError(err error) error {
	var typed *baton.Error
	if errors.As(err, &typed) {
		switch typed.Code.Label() {
		case "wrong_cluster", "name_in_use", "not_authorised", "worker_fenced", "predecessor_alive", "id_used", "no_authority",
			"token_unknown", "token_used", "token_expired", "token_revoked", "token_wrong_name", "token_wrong_cluster":
			return err
		}
	}
	return localError{err}
}

// nonEmpty lists an address that is given.
func nonEmpty(addr string) []string {
	if addr == "" {
		return nil
	}
	return []string{addr}
}
