package migrate

import (
	"fmt"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// Time-outs of the states that a migration's own deadline does not bound.
const (
	// checkTimeout bounds a look at the local tables.
	checkTimeout = time.Second
	// verifyTimeout is how long a director that knows of the pivot waits for the
	// source's account of it, which only adds the pause to the record.
	verifyTimeout = time.Second
	// settleRetry is how long after a commit could not be proposed it is
	// proposed again.
	settleRetry = time.Second
	// prepareShare of a migration's time may go by before the freeze; the rest is
	// for the handover.
	prepareNum, prepareDen = 2, 3
	// whyBytesMax bounds what an abort writes into the log.
	whyBytesMax = 256
)

// Plan is what a check found: who would hand what to whom.
type Plan struct {
	Source      *wire.Owner
	Target      *wire.Owner
	SourceEpoch uint64
	Attached    bool
}

// Params is all that a handoff is born with. The randomness comes in here, so
// that the core needs none.
type Params struct {
	Request   Request
	Nonce     []byte
	Token     Token
	ClusterID []byte
	// Timeout bounds the migration from its Begin, in log time and in the
	// director's own.
	Timeout time.Duration
	// Approval is how long an operator has to confirm it, 0: none is asked.
	Approval time.Duration
}

// InputKind is what a handoff can be told.
type InputKind uint8

const (
	InStart      InputKind = iota // begin with it
	InChecked                     // Plan, or Err
	InApproved                    // By, or Err, with Defer if it is only put off
	InConfirmed                   // TimeUS, or Err and Defer or Blame
	InProposed                    // Result of the one command in flight, or Err
	InPrepared                    // Err
	InInvited                     // Clients, or Err
	InWarm                        // Clients, or Err
	InHandedOver                  // Handover, or Err
	InSeen                        // Migration: the applied state's view of it; nil: it has none
	InTime                        // time has passed
)

// Input is one thing that happened. Kind says which fields count.
type Input struct {
	Kind   InputKind
	Err    error
	Plan   *Plan
	TimeUS uint64 // log time
	// By is the operator. With InApproved.
	By string
	// Defer: Err is a deferral for so long. Blame: Err is for want of an answer
	// of that worker. With InConfirmed.
	Defer  time.Duration
	Blame  string
	Result *wire.Result
	// Command is the one that Result or Err answers. With InProposed.
	Command   *wire.Command
	Clients   [][]byte
	Handover  *wire.HandoverResp
	Migration *wire.Migration
	// Gone is why the session is not there any more, OK while it is. With InSeen.
	Gone wire.Code
}

// ActionKind is what a handoff can ask of its runner.
type ActionKind uint8

const (
	ActCheck     ActionKind = iota // look at the tables; answer InChecked
	ActConfirm                     // ask who may object; answer InConfirmed
	ActPropose                     // Command; answer InProposed once it is resolved
	ActPrepare                     // call the target; answer InPrepared
	ActInvite                      // call the source; answer InInvited
	ActAwaitWarm                   // call the target; answer InWarm
	ActHandover                    // call the source; answer InHandedOver
	ActLook                        // answer InSeen
	ActFinish                      // it is over: cancel what it still waits for
)

// Action is one thing to do. Within bounds a call: by then its answer is of no
// use.
type Action struct {
	Kind    ActionKind
	Command *wire.Command
	Within  time.Duration
	Clients [][]byte // ActHandover: the warm ones
}

// Passage is the entry into a state, in the runner's elapsed time.
type Passage struct {
	State State
	At    time.Duration
}

// Handoff is one migration as its director drives it: a pure core. Inputs come
// in with the elapsed time, actions go out; at most one call and one command of
// it are waited for. Every state that is not final has a deadline, at which
// the handoff goes back (before the pivot) or forward (after it) by a commit;
// while that commit cannot be made, it stays where it is and asks again.
//
// What it never does: conclude an outcome from a call's answer or a time-out.
// The log's word (a command's result, or the applied state) is the only one
// that turns Begun into Pivoted or Aborted.
type Handoff struct {
	p        Params
	plan     *Plan
	m        *wire.Migration // from commit 1 on
	state    State
	deadline time.Duration
	total    time.Duration // when the migration's own time is over

	calling ActionKind // the call in flight
	inCall  bool
	warm    [][]byte

	// inFlight is the command that was last proposed and is not resolved. An
	// End may overtake an Abort whose answer is still to come: that is ignored.
	inFlight *wire.Command

	// Invariant: once cause is set, nothing but an abort is proposed, until the
	// log says that the pivot came first.
	cause     *wire.Error
	pivotSeen bool

	// again is when to ask for confirmation once more, 0: not deferred; deferral is
	// the last one's length.
	again    time.Duration
	deferral *wire.Error
	after    time.Duration

	// unapproved: an operator is to confirm it; confirmedBy is who did.
	unapproved  bool
	confirmedBy string

	blame    string // worker whose call failed for want of an answer
	err      *wire.Error
	epoch    uint64
	pauseUS  uint64
	parts    Parts
	conns    []*wire.Connection
	passages []Passage
	out      []Action
}

// NewHandoff makes a handoff in state Idle. It acts from InStart on.
func NewHandoff(p Params, now time.Duration) *Handoff {
	return &Handoff{p: p, deadline: now + checkTimeout, passages: []Passage{{Idle, now}}}
}

// AdoptHandoff takes over migration m, found begun or pivoted in the log
// without a director: at InStart it aborts the one and ends the other.
func AdoptHandoff(m *wire.Migration, now time.Duration) *Handoff {
	h := &Handoff{
		p: Params{Request: Request{
			Session: m.GetSession(), Target: m.GetTarget().GetWorker(),
			Reason: m.GetReason(), Priority: m.GetPriority(), By: m.GetBy(), Metadata: m.GetMetadata(),
		}, Nonce: m.GetNonce()},
		confirmedBy: m.GetConfirmedBy(),
		plan:        &Plan{Source: m.GetSource(), Target: m.GetTarget(), SourceEpoch: m.GetSourceEpoch()},
		m:           m,
		state:       StateOf(m.GetPhase()),
		epoch:       m.GetTargetEpoch(),
		deadline:    now + settleRetry,
	}
	h.passages = []Passage{{h.state, now}}
	return h
}

// State is where the handoff is.
func (h *Handoff) State() State { return h.state }

// Deadline is when InTime is due. A final state has none.
func (h *Handoff) Deadline() (at time.Duration, ok bool) {
	at = h.deadline
	if h.again != 0 {
		at = min(at, h.again)
	}
	return at, !h.state.Terminal()
}

// Migration is the log's record as last seen, nil before commit 1.
func (h *Handoff) Migration() *wire.Migration { return h.m }

// Err is why it ended Aborted or Failed, nil otherwise.
func (h *Handoff) Err() error {
	if h.err == nil {
		return nil
	}
	return h.err
}

// Deferred is for how long the move was put off when it ended, 0 if that is not
// why.
func (h *Handoff) Deferred() time.Duration {
	if h.err == nil || h.err.Code != wire.Code_MOVE_DEFERRED {
		return 0
	}
	return h.after
}

// Pause is how long the source said that nobody served the session, 0 while that
// is not known.
func (h *Handoff) Pause() time.Duration { return time.Duration(h.pauseUS) * time.Microsecond }

// Blame is the worker that did not answer a call, empty if none.
func (h *Handoff) Blame() string { return h.blame }

// Step tells the handoff what happened and returns what to do. The returned
// slice is valid until the next Step.
func (h *Handoff) Step(now time.Duration, in Input) []Action {
	h.out = h.out[:0]
	if h.state.Terminal() {
		return nil
	}
	switch in.Kind {
	case InStart:
		h.start(now)
	case InChecked:
		h.checked(now, in)
	case InApproved:
		h.approved(now, in)
	case InConfirmed:
		h.confirmed(now, in)
	case InProposed:
		h.proposed(now, in)
	case InPrepared, InInvited, InWarm, InHandedOver:
		h.answered(now, in)
	case InSeen:
		h.seen(now, in)
	case InTime:
		switch {
		case now >= h.deadline:
			h.late(now)
		case h.again != 0 && now >= h.again:
			h.askAgain(now)
		}
	}
	return h.out
}

// to moves the machine. Taking an event that the state does not take is a bug
// of this file: it must not be survived silently.
func (h *Handoff) to(at time.Duration, on Event) {
	next, err := Next(h.state, on)
	if err != nil {
		panic(fmt.Sprintf("migrate: %v", err))
	}
	h.state = next
	h.passages = append(h.passages, Passage{next, at})
}

func (h *Handoff) act(a Action) { h.out = append(h.out, a) }

func (h *Handoff) call(now time.Duration, a Action) {
	a.Within = h.deadline - now
	h.calling, h.inCall = a.Kind, true
	h.act(a)
}

func (h *Handoff) propose(c *wire.Command) {
	h.inFlight = c
	h.act(Action{Kind: ActPropose, Command: c})
}

func (h *Handoff) finish() {
	h.inCall = false
	h.act(Action{Kind: ActFinish})
}
