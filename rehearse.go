package baton

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// This file runs the parts of a migration by themselves, on a replicated state
// that is in memory only: to show them, and to measure them.

// RehearsalStep is one step of a rehearsal.
type RehearsalStep struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	TookUS int64  `json:"took_us"`
	Detail string `json:"detail,omitempty"` // what was seen; of a step that failed: why
}

// Rehearse runs a step and tells how it went. do returns what was seen.
func Rehearse(name string, do func() (string, error)) RehearsalStep {
	begun := time.Now()
	detail, err := do()
	s := RehearsalStep{Name: name, OK: err == nil, TookUS: time.Since(begun).Microseconds(), Detail: detail}
	if err != nil {
		s.Detail = err.Error()
	}
	return s
}

// stage is a cluster's replicated state with a session on the first of two
// workers, and a migration of it to the second.
type stage struct {
	st        *store.Store
	index     uint64
	nowUS     uint64
	clusterID []byte
	key       migrate.SealKey
	owners    [2]*wire.Owner
	tok       migrate.Token
	m         *wire.Migration
}

const (
	stageSession   = "rehearsal"
	stageTimeoutUS = 15_000_000
	// stageLiveBytes is the live state in a rehearsed snapshot.
	stageLiveBytes = 64 << 10
)

func newStage() (*stage, error) {
	g := &stage{st: store.New(), clusterID: make([]byte, wire.IDBytes), key: migrate.SealKey{Key: make([]byte, migrate.SealKeyBytes)}}
	for _, b := range [][]byte{g.clusterID, g.key.Key} {
		if _, err := rand.Read(b); err != nil {
			return nil, err
		}
	}
	if _, err := g.apply(&wire.Command{Kind: &wire.Command_InitCluster{InitCluster: &wire.InitCluster{ClusterId: g.clusterID, ByteBudget: wire.ByteBudgetDefault}}}); err != nil {
		return nil, err
	}
	for i := range g.owners {
		name := fmt.Sprintf("n%d", i+1)
		res, err := g.apply(&wire.Command{Kind: &wire.Command_RegisterWorker{RegisterWorker: &wire.RegisterWorker{Id: name, Name: name, Nonce: []byte(name)}}})
		if err != nil {
			return nil, err
		}
		g.owners[i] = &wire.Owner{Worker: name, Incarnation: res.GetEpoch()}
	}
	_, err := g.apply(&wire.Command{Kind: &wire.Command_Open{Open: &wire.OpenSession{
		Session: stageSession, Nonce: g.clusterID, SecretHash: bytes.Repeat([]byte{1}, wire.SecretBytes),
		TtlUs: uint64(wire.TTLDefault / time.Microsecond), Owner: g.owners[0], DeadlineUs: stageTimeoutUS,
	}}})
	return g, err
}

// apply commits one command; a refusal is an error.
func (g *stage) apply(cmd *wire.Command) (*wire.Result, error) {
	g.index++
	res, _ := g.st.Apply(g.index, &wire.Entry{TimeUs: g.nowUS, Commands: []*wire.Command{cmd}})
	if code := res[0].GetCode(); code != wire.Code_OK {
		return res[0], wire.Errorf(code, "the log refused it")
	}
	return res[0], nil
}

// mint makes a token, which is in the log only once begin was called.
func (g *stage) mint() (err error) {
	g.tok, err = migrate.Mint(rand.Reader)
	return err
}

// begin is commit 1, as the handoff proposes it.
func (g *stage) begin() error {
	row := g.st.Row(stageSession)
	p := migrate.Params{
		Request:   migrate.Request{Session: stageSession, Reason: wire.Reason_REASON_ADMIN_REQUEST, Priority: migrate.PriorityDefault},
		Nonce:     g.tok[:wire.IDBytes],
		Token:     g.tok,
		ClusterID: g.clusterID,
		Timeout:   stageTimeoutUS * time.Microsecond,
	}
	to := g.owners[0]
	if row.GetOwner().GetWorker() == to.GetWorker() {
		to = g.owners[1]
	}
	cmd, err := initiate(p, &migrate.Plan{Source: row.GetOwner(), Target: to, SourceEpoch: row.GetEpoch()}, g.nowUS)
	if err != nil {
		return err
	}
	res, err := g.apply(cmd)
	g.m = res.GetMigration()
	return err
}

// initiate is a handoff from its request to the command that begins it.
func initiate(p migrate.Params, plan *migrate.Plan, nowUS uint64) (*wire.Command, error) {
	if err := p.Request.Validate(); err != nil {
		return nil, err
	}
	h := migrate.NewHandoff(p, 0)
	h.Step(0, migrate.Input{Kind: migrate.InStart})
	h.Step(0, migrate.Input{Kind: migrate.InChecked, Plan: plan})
	actions := h.Step(0, migrate.Input{Kind: migrate.InConfirmed, TimeUS: nowUS})
	if len(actions) != 1 || actions[0].Command.GetBegin() == nil {
		return nil, wire.Errorf(wire.Code_INTERNAL, "the handoff did not begin")
	}
	return actions[0].Command, nil
}

func (g *stage) binding() migrate.Binding { return migrate.BindingOf(g.clusterID, g.m) }

func (g *stage) check(b migrate.Binding) error {
	m := g.m
	if m != nil {
		m = g.st.Migration(m.GetId())
	}
	return migrate.Check(g.tok, b, m, g.nowUS)
}

// snapshot creates and seals the connection state with n bytes of live state.
func (g *stage) snapshot(n int) (sealed []byte, digest uint64, err error) {
	cs := &wire.ConnectionState{
		Version: migrate.SnapshotVersion, ClusterId: g.clusterID, Migration: g.m.GetId(), Session: stageSession,
		SourceEpoch: g.m.GetSourceEpoch(), Target: g.m.GetTarget().GetWorker(), Change: g.st.Row(stageSession).GetChange(),
		Live: make([]byte, n), HasLive: true,
	}
	return migrate.Seal(g.key, g.binding(), cs, rand.Reader)
}

func (g *stage) pivot(digest uint64) error {
	_, err := g.apply(&wire.Command{Kind: &wire.Command_Pivot{Pivot: &wire.CommitPivot{
		Migration: g.m.GetId(), Change: g.st.Row(stageSession).GetChange(), Digest: digest, Attested: g.m.GetId(),
	}}})
	return err
}

// MeasuredPart returns a function that does one part of a migration once, to be
// called again and again: "initiate" is a request from its validation to the
// command that begins it, "token" minting a token and checking it as the target
// does, "snapshot" creating and sealing the connection state with 64 KiB of live
// state. It needs no cluster.
func MeasuredPart(part string) (func() error, error) {
	g, err := newStage()
	if err == nil {
		err = g.mint()
	}
	if err == nil {
		err = g.begin()
	}
	if err != nil {
		return nil, err
	}
	plan := &migrate.Plan{Source: g.m.GetSource(), Target: g.m.GetTarget(), SourceEpoch: g.m.GetSourceEpoch()}
	switch part {
	case "initiate":
		p := migrate.Params{
			Request: migrate.Request{Session: stageSession, Reason: wire.Reason_REASON_ADMIN_REQUEST}, Nonce: g.tok[:wire.IDBytes],
			Token: g.tok, ClusterID: g.clusterID, Timeout: stageTimeoutUS * time.Microsecond,
		}
		return func() error { _, err := initiate(p, plan, 1); return err }, nil
	case "token":
		m := g.st.Migration(g.m.GetId())
		return func() error {
			tok, err := migrate.Mint(rand.Reader)
			if err != nil {
				return err
			}
			m.TokenHash = migrate.Hash(tok, g.clusterID, stageSession, m.GetSourceEpoch(), m.GetSource(), m.GetTarget())
			return migrate.Check(tok, g.binding(), m, 1)
		}, nil
	case "snapshot":
		return func() error { _, _, err := g.snapshot(stageLiveBytes); return err }, nil
	}
	return nil, wire.Errorf(wire.Code_BAD_REQUEST, "%q is no part that can be measured: initiate, token or snapshot", part)
}

// refusedAs is nil if err is the refusal that is wanted.
func refusedAs(want wire.Code, err error) (string, error) {
	if got := wire.CodeOf(err); got != want {
		return "", fmt.Errorf("%v instead of the refusal %s: %w", got, want.Label(), err)
	}
	return "refused: " + want.Label(), nil
}
