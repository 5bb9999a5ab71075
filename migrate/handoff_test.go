package migrate

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// coreLog is the log as one handoff knows it: a dumb twin of the store's rules
// for one migration.
type coreLog struct {
	m *wire.Migration
}

func (l *coreLog) begin(c *wire.BeginMigration) *wire.Result {
	if l.m == nil {
		l.m = &wire.Migration{
			Id: 1 << 12, Nonce: c.GetNonce(), Session: c.GetSession(), Source: c.GetSource(), Target: c.GetTarget(),
			SourceEpoch: c.GetSourceEpoch(), DeadlineUs: c.GetDeadlineUs(), Phase: wire.Phase_PHASE_BEGUN,
		}
	}
	return &wire.Result{Migration: l.copy()}
}

func (l *coreLog) copy() *wire.Migration {
	if l.m == nil {
		return nil
	}
	m := &wire.Migration{}
	m.Id, m.Nonce, m.Session, m.Source, m.Target = l.m.Id, l.m.Nonce, l.m.Session, l.m.Source, l.m.Target
	m.Phase, m.TargetEpoch, m.Why = l.m.Phase, l.m.TargetEpoch, l.m.Why
	return m
}

func (l *coreLog) apply(c *wire.Command) *wire.Result {
	switch {
	case c.GetBegin() != nil:
		return l.begin(c.GetBegin())
	case l.m == nil:
		return &wire.Result{Code: wire.Code_UNKNOWN_MIGRATION}
	}
	code := wire.Code_OK
	switch {
	case c.GetAbort() != nil && l.m.Phase == wire.Phase_PHASE_BEGUN:
		l.m.Phase, l.m.Why = wire.Phase_PHASE_ABORTED, c.GetAbort().GetReason()
	case c.GetAbort() != nil && movedOn(l.m):
		code = wire.Code_MIGRATION_PIVOTED
	case c.GetEnd() != nil && l.m.Phase == wire.Phase_PHASE_PIVOTED:
		l.m.Phase = wire.Phase_PHASE_COMPLETED
	case c.GetEnd() != nil && l.m.Phase != wire.Phase_PHASE_COMPLETED:
		code = wire.Code_MIGRATION_ENDED
	}
	return &wire.Result{Code: code, Migration: l.copy()}
}

// pivot is what the target does, without the director.
func (l *coreLog) pivot() {
	if l.m != nil && l.m.Phase == wire.Phase_PHASE_BEGUN {
		l.m.Phase, l.m.TargetEpoch = wire.Phase_PHASE_PIVOTED, 8
	}
}

func testParams() Params {
	return Params{
		Request: Request{Session: "s", Target: "n2", Reason: wire.Reason_REASON_ADMIN_REQUEST, Priority: 3},
		Nonce:   []byte("nonce"), ClusterID: testCluster, Timeout: 9 * time.Second,
	}
}

func testPlan() *Plan {
	return &Plan{Source: testSource, Target: testTarget, SourceEpoch: 7, Attached: true}
}

// coreScript runs a handoff and writes down what it does.
type coreScript struct {
	t     *testing.T
	h     *Handoff
	now   time.Duration
	log   coreLog
	last  *wire.Command
	trace []string
}

func newScript(t *testing.T) *coreScript {
	return &coreScript{t: t, h: NewHandoff(testParams(), 0)}
}

func (c *coreScript) in(in Input) *coreScript {
	c.t.Helper()
	for _, a := range c.h.Step(c.now, in) {
		c.trace = append(c.trace, actionName(a))
		if a.Kind == ActPropose {
			c.last = a.Command
		}
	}
	return c
}

// committed answers the command in flight as the log does.
func (c *coreScript) committed() *coreScript {
	c.t.Helper()
	if c.last == nil {
		c.t.Fatalf("nothing was proposed after %v", c.trace)
	}
	return c.in(Input{Kind: InProposed, Command: c.last, Result: c.log.apply(c.last)})
}

// late lets the deadline pass.
func (c *coreScript) late() *coreScript {
	c.t.Helper()
	at, ok := c.h.Deadline()
	if !ok {
		c.t.Fatal("it is over")
	}
	c.now = at
	return c.in(Input{Kind: InTime})
}

// begun brings it to the first call.
func (c *coreScript) begun() *coreScript {
	c.t.Helper()
	return c.in(Input{Kind: InStart}).in(Input{Kind: InChecked, Plan: testPlan()}).
		in(Input{Kind: InConfirmed, TimeUS: 5}).committed()
}

var oneClient = [][]byte{[]byte("c1")}

func (c *coreScript) handingOver() *coreScript {
	c.t.Helper()
	return c.begun().in(Input{Kind: InPrepared}).in(Input{Kind: InInvited, Clients: oneClient}).
		in(Input{Kind: InWarm, Clients: oneClient})
}

func (c *coreScript) expect(state State, code wire.Code, trace string) {
	c.t.Helper()
	if c.h.State() != state || wire.CodeOf(c.h.Err()) != code {
		c.t.Errorf("ended %v with %v, want %v with %v", c.h.State(), c.h.Err(), state, code)
	}
	if got := strings.Join(c.trace, " "); got != trace {
		c.t.Errorf("it did\n\t%s\nwant\n\t%s", got, trace)
	}
}

func actionName(a Action) string {
	switch a.Kind {
	case ActPropose:
		switch a.Command.GetKind().(type) {
		case *wire.Command_Begin:
			return "begin"
		case *wire.Command_Abort:
			return "abort"
		case *wire.Command_End:
			return "end"
		}
	case ActCheck:
		return "check"
	case ActConfirm:
		return "confirm"
	case ActPrepare:
		return "prepare"
	case ActInvite:
		return "invite"
	case ActAwaitWarm:
		return "warm"
	case ActHandover:
		return "handover"
	case ActLook:
		return "look"
	case ActFinish:
		return "finish"
	}
	return fmt.Sprint("?", a.Kind)
}

const (
	toBegin    = "check confirm begin"
	toHandover = "check confirm begin prepare invite warm handover"
)

func (c *coreScript) handedOver() *coreScript {
	c.log.pivot()
	return c.in(Input{Kind: InHandedOver, Handover: &wire.HandoverResp{Migration: c.log.copy(), TransferUs: 20, PauseUs: 30}})
}

func (c *coreScript) seen() *coreScript { return c.in(Input{Kind: InSeen, Migration: c.log.copy()}) }

func TestHandoffHappyPath(t *testing.T) {
	c := newScript(t).handingOver().handedOver().seen().committed()
	c.expect(Completed, wire.Code_OK, toHandover+" look end finish")
	var states []State
	for _, p := range c.h.Report(c.now, time.Unix(0, 0)).Steps {
		states = append(states, p.State)
	}
	want := []State{Idle, Initiating, WaitingConfirmation, Preparing, CapturingState, TransferringState, Pivoting, Verifying, Completing, Completed}
	if !slices.Equal(states, want) {
		t.Errorf("steps %v, want %v", states, want)
	}
	if r := c.h.Report(c.now, time.Unix(0, 0)); r.PauseUS != 30 || r.Epoch != 8 || r.From != "n1" || r.To != "n2" || r.Migration != 1<<12 {
		t.Errorf("report %+v", r)
	}
}

func TestHandoffDetachedNeedsNoWarmClient(t *testing.T) {
	newScript(t).begun().in(Input{Kind: InPrepared}).in(Input{Kind: InInvited}).handedOver().seen().committed().
		expect(Completed, wire.Code_OK, toBegin+" prepare invite handover look end finish")
}

// The pivot is seen in the tables before the source has answered: the answer,
// which tells the pause, is worth a moment.
func TestHandoffPivotSeenFirst(t *testing.T) {
	c := newScript(t).handingOver()
	c.log.pivot()
	c.seen()
	c.handedOver().committed().expect(Completed, wire.Code_OK, toHandover+" end finish")
	if c.h.pauseUS != 30 {
		t.Error("the pause was lost")
	}

	c = newScript(t).handingOver()
	c.log.pivot()
	c.seen().seen().late()
	// The answer that was not waited for comes after all: nobody listens.
	c.in(Input{Kind: InHandedOver, Err: errors.New("lost")})
	c.committed().expect(Completed, wire.Code_OK, toHandover+" end finish")
}

func TestHandoffRefusedBeforeBegin(t *testing.T) {
	refusal := wire.Errorf(wire.Code_UNKNOWN_SESSION, "none")
	newScript(t).in(Input{Kind: InStart}).in(Input{Kind: InChecked, Err: refusal}).
		expect(Failed, wire.Code_UNKNOWN_SESSION, "check finish")
	newScript(t).in(Input{Kind: InStart}).in(Input{Kind: InChecked, Plan: testPlan()}).in(Input{Kind: InConfirmed, Err: refusal}).
		expect(Failed, wire.Code_UNKNOWN_SESSION, "check confirm finish")
	c := newScript(t).in(Input{Kind: InStart}).in(Input{Kind: InChecked, Plan: testPlan()}).in(Input{Kind: InConfirmed})
	c.in(Input{Kind: InProposed, Command: c.last, Result: &wire.Result{Code: wire.Code_STALE_EPOCH}}).
		expect(Failed, wire.Code_STALE_EPOCH, toBegin+" finish")
	c = newScript(t).in(Input{Kind: InStart}).in(Input{Kind: InChecked, Plan: testPlan()}).in(Input{Kind: InConfirmed})
	c.in(Input{Kind: InProposed, Command: c.last, Err: wire.Errorf(wire.Code_OVERLOADED, "")}).
		expect(Failed, wire.Code_OVERLOADED, toBegin+" finish")
}

// Every state that is not final ends by its deadline: before commit 1 at once,
// after it by a commit.
func TestHandoffDeadlines(t *testing.T) {
	newScript(t).late().expect(Failed, wire.Code_DEADLINE_EXCEEDED, "finish")
	newScript(t).in(Input{Kind: InStart}).late().expect(Failed, wire.Code_DEADLINE_EXCEEDED, "check finish")
	newScript(t).in(Input{Kind: InStart}).in(Input{Kind: InChecked, Plan: testPlan()}).late().
		expect(Failed, wire.Code_DEADLINE_EXCEEDED, "check confirm finish")
	// The log answers Begin too late: it is undone at once.
	newScript(t).in(Input{Kind: InStart}).in(Input{Kind: InChecked, Plan: testPlan()}).in(Input{Kind: InConfirmed}).
		late().late().committed().committed().
		expect(Aborted, wire.Code_DEADLINE_PASSED, toBegin+" abort finish")
	newScript(t).begun().late().committed().
		expect(Aborted, wire.Code_DEADLINE_EXCEEDED, toBegin+" prepare abort finish")
	newScript(t).begun().in(Input{Kind: InPrepared}).late().committed().
		expect(Aborted, wire.Code_DEADLINE_EXCEEDED, toBegin+" prepare invite abort finish")
	newScript(t).begun().in(Input{Kind: InPrepared}).in(Input{Kind: InInvited, Clients: oneClient}).late().committed().
		expect(Aborted, wire.Code_CLIENT_CANNOT_REACH, toBegin+" prepare invite warm abort finish")
	newScript(t).handingOver().late().committed().
		expect(Aborted, wire.Code_DEADLINE_EXCEEDED, toHandover+" abort finish")
	// The source says moved, the log never does.
	c := newScript(t).handingOver()
	c.in(Input{Kind: InHandedOver, Handover: &wire.HandoverResp{Migration: &wire.Migration{Phase: wire.Phase_PHASE_PIVOTED}}})
	c.seen().late().committed().expect(Aborted, wire.Code_DEADLINE_PASSED, toHandover+" look abort finish")
}

func TestHandoffCallFails(t *testing.T) {
	lost := errors.New("connection lost")
	c := newScript(t).begun().in(Input{Kind: InPrepared, Err: lost}).committed()
	c.expect(Aborted, wire.Code_UNAVAILABLE, toBegin+" prepare abort finish")
	if c.h.Blame() != "n2" {
		t.Errorf("blames %q", c.h.Blame())
	}
	c = newScript(t).begun().in(Input{Kind: InPrepared}).in(Input{Kind: InInvited, Err: lost}).committed()
	c.expect(Aborted, wire.Code_UNAVAILABLE, toBegin+" prepare invite abort finish")
	if c.h.Blame() != "n1" {
		t.Errorf("blames %q", c.h.Blame())
	}
	c = newScript(t).begun().in(Input{Kind: InPrepared, Err: wire.Errorf(wire.Code_TOO_MANY, "full")}).committed()
	c.expect(Aborted, wire.Code_TOO_MANY, toBegin+" prepare abort finish")
	if c.h.Blame() != "" {
		t.Errorf("blames %q for a refusal", c.h.Blame())
	}
	newScript(t).begun().in(Input{Kind: InPrepared}).in(Input{Kind: InInvited, Clients: oneClient}).in(Input{Kind: InWarm}).committed().
		expect(Aborted, wire.Code_CLIENT_CANNOT_REACH, toBegin+" prepare invite warm abort finish")
	newScript(t).handingOver().in(Input{Kind: InHandedOver, Handover: &wire.HandoverResp{Migration: &wire.Migration{Phase: wire.Phase_PHASE_BEGUN}}}).
		committed().expect(Aborted, wire.Code_RETRY, toHandover+" abort finish")
}

// The handover's answer is lost: the abort asks the log, which knows better.
func TestHandoffLostAnswer(t *testing.T) {
	lost := Input{Kind: InHandedOver, Err: errors.New("connection lost")}
	newScript(t).handingOver().in(lost).committed().
		expect(Aborted, wire.Code_UNAVAILABLE, toHandover+" abort finish")
	c := newScript(t).handingOver().in(lost)
	c.log.pivot()
	c.committed().committed().expect(Completed, wire.Code_OK, toHandover+" abort end finish")
}

// The pivot is seen while the abort is on its way: the abort's late answer is
// not taken for the end's.
func TestHandoffEndOvertakesAbort(t *testing.T) {
	c := newScript(t).handingOver().in(Input{Kind: InHandedOver, Err: errors.New("lost")})
	abort := c.last
	c.log.pivot()
	c.seen()
	c.in(Input{Kind: InProposed, Command: abort, Result: &wire.Result{Code: wire.Code_MIGRATION_PIVOTED}})
	if c.h.State() != Completing {
		t.Fatalf("state %v", c.h.State())
	}
	c.committed().expect(Completed, wire.Code_OK, toHandover+" abort end finish")
}

// Commits that could not be proposed are proposed again.
func TestHandoffRetriesCommits(t *testing.T) {
	over := wire.Errorf(wire.Code_OVERLOADED, "")
	c := newScript(t).begun().in(Input{Kind: InPrepared, Err: errors.New("x")})
	c.in(Input{Kind: InProposed, Command: c.last, Err: over}).late().committed().
		expect(Aborted, wire.Code_UNAVAILABLE, toBegin+" prepare abort abort finish")
	c = newScript(t).handingOver().handedOver().seen()
	c.in(Input{Kind: InProposed, Command: c.last, Err: over}).late().late().committed().
		expect(Completed, wire.Code_OK, toHandover+" look end end finish")
}

// Others end the migration: another director, close, expiry, reassignment.
func TestHandoffEndedByOthers(t *testing.T) {
	c := newScript(t).begun()
	c.log.apply(abortCommand("another director"))
	c.seen().expect(Aborted, wire.Code_MIGRATION_ENDED, toBegin+" prepare finish")
	c = newScript(t).begun()
	c.log.apply(abortCommand("session closed"))
	c.in(Input{Kind: InSeen, Migration: c.log.copy(), Gone: wire.Code_SESSION_CLOSED}).
		expect(Aborted, wire.Code_SESSION_CLOSED, toBegin+" prepare finish")
	newScript(t).begun().in(Input{Kind: InSeen}).
		expect(Failed, wire.Code_UNKNOWN_MIGRATION, toBegin+" prepare finish")
	c = newScript(t).begun().late()
	c.in(Input{Kind: InProposed, Command: c.last, Result: &wire.Result{Code: wire.Code_UNKNOWN_MIGRATION}}).
		expect(Failed, wire.Code_UNKNOWN_MIGRATION, toBegin+" prepare abort finish")
	// Completed by another director already.
	c = newScript(t).handingOver()
	c.log.pivot()
	c.log.apply(&wire.Command{Kind: &wire.Command_End{End: &wire.EndMigration{}}})
	c.handedOver().seen().expect(Completed, wire.Code_OK, toHandover+" look finish")
}

func abortCommand(why string) *wire.Command {
	return &wire.Command{Kind: &wire.Command_Abort{Abort: &wire.AbortMigration{Migration: 1 << 12, Reason: why}}}
}

func TestHandoffAdopted(t *testing.T) {
	for phase, want := range map[wire.Phase]State{wire.Phase_PHASE_BEGUN: Aborted, wire.Phase_PHASE_PIVOTED: Completed} {
		c := &coreScript{t: t}
		c.log.begin(&wire.BeginMigration{Session: "s", Source: testSource, Target: testTarget})
		c.log.m.Phase = phase
		c.h = AdoptHandoff(c.log.copy(), 0)
		c.in(Input{Kind: InStart}).in(Input{Kind: InStart}).committed()
		if c.h.State() != want || c.log.m.Phase == phase {
			t.Errorf("%v: ended %v, log %v, by %v", phase, c.h.State(), c.log.m.Phase, c.trace)
		}
	}
}

// A long error from a peer does not go into the log as it is.
func TestHandoffClipsReason(t *testing.T) {
	c := newScript(t).begun().in(Input{Kind: InPrepared, Err: errors.New(strings.Repeat("é", 5000))})
	if n := len(c.last.GetAbort().GetReason()); n > whyBytesMax || n < whyBytesMax/2 {
		t.Errorf("%d bytes", n)
	}
}

// TestClipMakesText: what is clipped is to be committed.
func TestClipMakesText(t *testing.T) {
	for in, want := range map[string]string{"abc": "abc", "abcdef": "abcd", "abc\u00e4": "abc", "a\xffb": "ab", "\xff": ""} {
		if got := clip(in, 4); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}
