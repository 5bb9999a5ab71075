package migrate

import (
	"errors"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/baton-cluster/baton/wire"
)

// Whatever happens in whatever order: no panic, one call at a time, the end is
// the log's, and it comes once the log and the clock go on.
func TestHandoffRandom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &randomRun{t: t, h: NewHandoff(testParams(), 0)}
		if rapid.Bool().Draw(t, "adopted") {
			r.log.begin(&wire.BeginMigration{Session: "s", Source: testSource, Target: testTarget})
			if rapid.Bool().Draw(t, "pivoted") {
				r.log.pivot()
			}
			r.h = AdoptHandoff(r.log.copy(), 0)
		}
		r.step(Input{Kind: InStart})
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			r.random()
		}
		for i := 0; !r.h.State().Terminal(); i++ {
			if i > 20 {
				t.Fatalf("no end in state %v: %v", r.h.State(), r.trace)
			}
			at, _ := r.h.Deadline()
			r.now = max(r.now, at)
			r.step(Input{Kind: InTime})
			for len(r.pending) > 0 {
				r.resolve(0, false)
			}
		}
		r.check()
	})
}

type randomRun struct {
	t       *rapid.T
	h       *Handoff
	log     coreLog
	now     time.Duration
	call    InputKind
	inCall  bool
	pending []*wire.Command
	trace   []string
}

func (r *randomRun) step(in Input) {
	for _, a := range slices.Clone(r.h.Step(r.now, in)) {
		r.trace = append(r.trace, actionName(a))
		switch a.Kind {
		case ActPropose:
			r.pending = append(r.pending, a.Command)
			if a.Command.GetAbort() != nil && (r.h.State() == Verifying || r.h.State() == Completing) {
				r.t.Fatalf("an abort after the pivot: %v", r.trace)
			}
		case ActPrepare, ActInvite, ActAwaitWarm, ActHandover:
			if r.inCall {
				r.t.Fatalf("two calls at once: %v", r.trace)
			}
			r.call, r.inCall = answerOf(a.Kind), true
		case ActFinish:
			r.inCall = false
		}
	}
}

// resolve answers a pending command, by the log or with "not proposed".
func (r *randomRun) resolve(i int, refuse bool) {
	c := r.pending[i]
	r.pending = slices.Delete(r.pending, i, i+1)
	if refuse {
		r.step(Input{Kind: InProposed, Command: c, Err: wire.Errorf(wire.Code_OVERLOADED, "")})
		return
	}
	r.step(Input{Kind: InProposed, Command: c, Result: r.log.apply(c)})
}

func (r *randomRun) random() {
	fail := func() error {
		if rapid.IntRange(0, 2).Draw(r.t, "fails") == 0 {
			return errors.New("lost")
		}
		return nil
	}
	switch rapid.IntRange(0, 16).Draw(r.t, "what") {
	default:
		r.advance()
	case 0:
		r.step(Input{Kind: InChecked, Plan: testPlan(), Err: fail()})
	case 1:
		r.step(Input{Kind: InConfirmed, Err: fail()})
	case 2:
		if len(r.pending) > 0 {
			r.resolve(rapid.IntRange(0, len(r.pending)-1).Draw(r.t, "command"), rapid.IntRange(0, 3).Draw(r.t, "refuse") == 0)
		}
	case 3, 4:
		in := Input{Kind: InputKind(rapid.IntRange(int(InPrepared), int(InHandedOver)).Draw(r.t, "stray"))}
		if r.inCall && rapid.IntRange(0, 3).Draw(r.t, "right") > 0 {
			in.Kind = r.call
		}
		r.inCall = r.inCall && in.Kind != r.call
		if in.Err = fail(); in.Err == nil {
			in.Clients = oneClient[:rapid.IntRange(0, 1).Draw(r.t, "clients")]
			in.Handover = &wire.HandoverResp{Migration: r.log.copy(), PauseUs: 1, TransferUs: 1}
		}
		r.step(in)
	case 5:
		r.log.pivot()
	case 6:
		r.step(Input{Kind: InSeen, Migration: r.log.copy()})
	case 7:
		r.now += time.Duration(rapid.IntRange(0, 4000).Draw(r.t, "ms")) * time.Millisecond
		r.step(Input{Kind: InTime})
	case 8:
		if r.log.m.GetPhase() == wire.Phase_PHASE_BEGUN {
			r.log.apply(abortCommand("another"))
		}
	}
}

// advance lets what is under way go well, so that the later states are reached.
func (r *randomRun) advance() {
	switch {
	case r.h.State() == Initiating:
		r.step(Input{Kind: InChecked, Plan: testPlan()})
	case r.h.State() == WaitingConfirmation:
		r.step(Input{Kind: InConfirmed})
	case len(r.pending) > 0:
		r.resolve(0, false)
	case r.inCall:
		r.inCall = false
		if r.call == InHandedOver {
			r.log.pivot()
		}
		r.step(Input{Kind: r.call, Clients: oneClient, Handover: &wire.HandoverResp{Migration: r.log.copy(), PauseUs: 1, TransferUs: 1}})
	}
}

func (r *randomRun) check() {
	phase := r.log.m.GetPhase()
	switch r.h.State() {
	case Completed:
		if phase != wire.Phase_PHASE_COMPLETED || r.h.Err() != nil {
			r.t.Fatalf("completed, log says %v, err %v: %v", phase, r.h.Err(), r.trace)
		}
	case Aborted:
		if phase != wire.Phase_PHASE_ABORTED || r.h.Err() == nil {
			r.t.Fatalf("aborted, log says %v, err %v: %v", phase, r.h.Err(), r.trace)
		}
	case Failed:
		// Forgotten needs a migration that the log dropped, which this one never does
		// unless asked about one that it never had.
		if r.h.Migration() != nil || r.h.Err() == nil {
			r.t.Fatalf("failed after its begin, err %v: %v", r.h.Err(), r.trace)
		}
	}
	if len(r.h.Step(r.now, Input{Kind: InTime})) != 0 {
		r.t.Fatal("it acts after its end")
	}
}

func BenchmarkBegin(b *testing.B) {
	plan := testPlan()
	for b.Loop() {
		h := NewHandoff(testParams(), 0)
		h.Step(0, Input{Kind: InStart})
		h.Step(0, Input{Kind: InChecked, Plan: plan})
		if len(h.Step(0, Input{Kind: InConfirmed, TimeUS: 1})) != 1 {
			b.Fatal("no begin")
		}
	}
}
