package explore

import (
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// Scenarios are the counterexamples to earlier drafts of the rules, told to the
// store that ships. Each has a mutant that takes its rule out, and then fails
// (see ledger_test.go).

// tale is one scenario's log.
type tale struct {
	t    *testing.T
	b    *book
	head uint32
	time uint8
}

func newTale(t *testing.T, clients int, shared bool) *tale {
	b, head := newBook(clients, shared)
	return &tale{t: t, b: b, head: head}
}

// do commits c, which is to be answered so.
func (x *tale) do(c cmd, want wire.Code) result {
	x.t.Helper()
	return x.both(c, cmd{}, want).a
}

func (x *tale) both(a, b cmd, want wire.Code) (ans answer) {
	x.t.Helper()
	var n uint16
	x.head, n = x.b.commit(x.head, x.b.props.small(prop{a, b}), x.time)
	ans = x.b.answers.at(uint32(n))
	if got := wire.Code(ans.a.code); got != want {
		x.t.Errorf("%s is answered %v, want %v", kindWords[a.kind], got, want)
	}
	return ans
}

func (x *tale) row() row { return x.b.rows.at(uint32(x.facts().row)) }

func (x *tale) facts() *facts { return x.b.facts(x.head) }

func (x *tale) is(what string, ok bool) {
	x.t.Helper()
	if !ok {
		x.t.Errorf("not so: %s; the row is %+v", what, x.row())
	}
}

const ok = wire.Code_OK

// The beginning has node 0 own the session as incarnation 1 in epoch 4, with
// client 0 attached.

func write(c, seq, prev, value uint8) cmd {
	return cmd{kind: kWrite, node: 0, inc: 1, epoch: 4, client: c, seq: seq, prev: prev, value: value}
}

func begin(to uint8) cmd {
	return cmd{kind: kBegin, node: 0, inc: 1, epoch: 4, to: to, toInc: to + 1, num: 1}
}

func fence(n uint8) cmd { return cmd{kind: kFence, node: n, inc: n + 1} }

func pivot(mig, change, attested pos) cmd {
	return cmd{kind: kPivot, mig: mig, change: change, attested: attested, warm: 1}
}

func TestScenarios(t *testing.T) {
	for _, sc := range []struct {
		name string
		tell func(*testing.T)
	}{
		{"one entry makes two epochs", oneEntryTwoEpochs},
		{"time does not go back", timeRunsOn},
		{"an owner of an earlier epoch", ownerOfAnEarlierEpoch},
		{"assigning ends the move", assignEndsTheMove},
		{"assigning detaches", assignDetaches},
		{"a late Assign", lateAssign},
		{"late Attach and Detach", lateAttachAndDetach},
		{"each instance has its own seqs", ownSeqs},
		{"a failure is an outcome", failureIsAnOutcome},
		{"the window first, then the previous seq", windowThenPrevious},
		{"a fenced owner's marker", fencedMarker},
		{"a start on another machine", startElsewhere},
		{"attested for another move", attestedForAnother},
		{"a target that started anew", targetStartedAnew},
		{"a row that changed behind the snapshot", changedBehindTheSnapshot},
		{"a pivot past its deadline", pivotTooLate},
		{"a pivot after the abort", pivotAfterAbort},
		{"the pivot attaches who is warm", pivotAttaches},
	} {
		t.Run(sc.name, sc.tell)
	}
}

// S1: an entry holds many commands, so its index is no epoch.
func oneEntryTwoEpochs(t *testing.T) {
	x := newTale(t, 1, false)
	a := x.both(cmd{kind: kRegister, node: 1, inc: 2, num: 1}, cmd{kind: kRegister, node: 2, inc: 3, num: 1}, ok)
	x.is("the incarnations differ", a.a.epoch != a.b.epoch)
	before := x.row().epoch
	x.do(fence(0), ok)
	x.do(cmd{kind: kAssign, epoch: before, to: 1, toInc: a.a.epoch}, ok)
	x.is("the epoch is above all that were", x.row().epoch > max(before, a.a.epoch, a.b.epoch))
}

// S4: a leader whose clock is behind does not turn log time back.
func timeRunsOn(t *testing.T) {
	x := newTale(t, 1, false)
	x.time = 2
	x.do(cmd{kind: kTick}, ok)
	x.time = 1
	x.do(cmd{kind: kTick}, ok)
	x.is("log time stays", x.facts().time == 2)
}

// S2: who was moved past writes no more, in whatever order the log has it.
func ownerOfAnEarlierEpoch(t *testing.T) {
	x := newTale(t, 1, false)
	x.do(fence(0), ok)
	x.do(write(0, 1, 0, 1), wire.Code_STALE_INCARNATION)
	x.do(cmd{kind: kAssign, epoch: 4, to: 1, toInc: 2}, ok)
	x.do(write(0, 1, 0, 1), wire.Code_STALE_EPOCH)
	x.is("nothing was written", x.row().value == 0)
}

// S2: left active, a move of the former owner would take the session away from
// one that never agreed.
func assignEndsTheMove(t *testing.T) {
	x := newTale(t, 1, false)
	m := x.do(begin(1), ok).mig
	change := x.row().change
	x.do(fence(0), ok)
	x.do(cmd{kind: kAssign, epoch: 4, to: 2, toInc: 3}, ok)
	x.do(pivot(m, change, m), wire.Code_MIGRATION_ENDED)
	x.is("the new owner stays", x.row().owner == 2 && x.row().mig == 0)
}

// S7: attachments belong to an epoch.
func assignDetaches(t *testing.T) {
	x := newTale(t, 1, false)
	x.do(fence(0), ok)
	x.do(cmd{kind: kAssign, epoch: 4, to: 1, toInc: 2}, ok)
	x.is("nobody is attached", !x.row().attached())
}

// S2: an Assign names the epoch that it replaces, and replaces no valid owner.
func lateAssign(t *testing.T) {
	x := newTale(t, 1, false)
	late := cmd{kind: kAssign, epoch: 4, to: 2, toInc: 3}
	x.do(late, wire.Code_OWNER_VALID)
	x.do(fence(0), ok)
	first := x.do(cmd{kind: kAssign, epoch: 4, to: 1, toInc: 2}, ok).epoch
	x.do(late, wire.Code_STALE_EPOCH)
	x.do(fence(1), ok)
	x.do(late, wire.Code_STALE_EPOCH)
	x.is("the owner stays", x.row().epoch == first)
}

// S7: what comes late opens nothing and closes nothing.
func lateAttachAndDetach(t *testing.T) {
	x := newTale(t, 1, false)
	attach := func(num uint8) cmd { return cmd{kind: kAttach, node: 0, inc: 1, epoch: 4, num: num} }
	detach := func(num uint8) cmd { return cmd{kind: kDetach, node: 0, inc: 1, epoch: 4, num: num} }
	x.do(attach(20), ok)
	x.do(detach(numberFirst), ok)
	x.is("attachment 20 stays", x.row().num[0] == 20)
	x.do(detach(20), ok)
	x.do(attach(20), wire.Code_NOT_ATTACHED)
	x.do(attach(19), wire.Code_NOT_ATTACHED)
	x.is("nobody is attached", !x.row().attached())
}

// Section 5: a client instance and its successor must never get each other's
// replies.
func ownSeqs(t *testing.T) {
	x := newTale(t, 2, true)
	x.do(write(0, 1, 0, 1), ok)
	r := x.do(write(1, 1, 0, 2), ok)
	x.is("the second client's write is its own", !r.dup && r.reply == 2 && x.row().value == 2)
}

// Section 5: a late duplicate of what was refused must not run again and succeed.
func failureIsAnOutcome(t *testing.T) {
	x := newTale(t, 1, false)
	busy := write(0, 1, 0, 0)
	busy.fails = true
	x.do(busy, ok)
	r := x.do(write(0, 1, 0, 1), ok)
	x.is("the duplicate is told the failure", r.dup && wire.Code(r.outcome) == wire.Code_HANDLER_ERROR && x.row().value == 0)
}

// Section 5: a retry gets its reply whatever came after; a write whose
// predecessor is not on record is refused.
func windowThenPrevious(t *testing.T) {
	x := newTale(t, 1, false)
	x.do(write(0, 2, 1, 7), wire.Code_SEQ_MISMATCH)
	x.do(write(0, 1, 0, 1), ok)
	r := x.do(write(0, 1, 0, 9), ok)
	x.is("the retry gets the first reply", r.dup && r.reply == 1)
	x.do(write(0, 2, 1, 2), ok)
	x.do(write(0, 3, 1, 3), wire.Code_SEQ_MISMATCH)
	x.do(write(0, 1, 0, 9), wire.Code_REPLY_GONE)
	x.is("two writes count", x.row().value == 2)
}

// Section 5: a read is confirmed for the incarnation that made the activation.
func fencedMarker(t *testing.T) {
	x := newTale(t, 1, false)
	x.do(cmd{kind: kMarker, node: 0, inc: 1}, ok)
	x.do(fence(0), ok)
	x.do(cmd{kind: kMarker, node: 0, inc: 1}, wire.Code_STALE_INCARNATION)
}

// Section 6: a copied data directory waits until the former incarnation is fenced.
func startElsewhere(t *testing.T) {
	x := newTale(t, 1, false)
	copied := cmd{kind: kRegister, node: 0, inc: 1, num: 1, away: 1}
	x.do(copied, wire.Code_PREDECESSOR_ALIVE)
	x.is("the owner is valid", x.facts().valid(0, 1))
	x.do(fence(0), ok)
	x.do(copied, ok)
	x.is("the owner is not", !x.facts().valid(0, 1))
}

// H1: a freeze that was attested for one move must not pivot another.
func attestedForAnother(t *testing.T) {
	x := newTale(t, 1, false)
	first := x.do(begin(1), ok).mig
	x.do(cmd{kind: kAbort, mig: first}, ok)
	second := x.do(cmd{kind: kBegin, node: 0, inc: 1, epoch: 4, to: 1, toInc: 2, num: 2}, ok).mig
	x.do(pivot(second, x.row().change, first), wire.Code_NOT_ATTESTED)
	x.do(pivot(second, x.row().change, 0), wire.Code_NOT_ATTESTED)
	x.is("the session stays", x.row().owner == 0)
	x.do(fence(0), ok) // the source can write no more: the freeze is needless
	x.do(pivot(second, x.row().change, 0), ok)
}

// H2: the target of commit 1 is an incarnation.
func targetStartedAnew(t *testing.T) {
	x := newTale(t, 1, false)
	m := x.do(begin(1), ok).mig
	x.do(cmd{kind: kRegister, node: 1, inc: 2, num: 1}, ok)
	x.do(pivot(m, x.row().change, m), wire.Code_TARGET_STALE)
	x.is("the session stays", x.row().owner == 0)
}

// H2: the row that moves is the one that the snapshot names.
func changedBehindTheSnapshot(t *testing.T) {
	x := newTale(t, 1, false)
	m := x.do(begin(1), ok).mig
	change := x.row().change
	x.do(write(0, 1, 0, 1), ok)
	x.do(pivot(m, change, m), wire.Code_CHANGE_MISMATCH)
	x.do(pivot(m, x.row().change, m), ok)
}

// H2: nothing is taken past the deadline, which is in log time.
func pivotTooLate(t *testing.T) {
	x := newTale(t, 1, false)
	m := x.do(begin(1), ok).mig
	x.time = 1
	x.do(pivot(m, x.row().change, m), wire.Code_DEADLINE_PASSED)
	x.do(cmd{kind: kAbort, mig: m}, ok)
	x.is("it can be aborted, and the session stays", x.row().mig == 0 && x.row().owner == 0)
}

// H3: the log decides every race, once.
func pivotAfterAbort(t *testing.T) {
	x := newTale(t, 1, false)
	m := x.do(begin(1), ok).mig
	change := x.row().change
	x.do(cmd{kind: kAbort, mig: m}, ok)
	x.do(pivot(m, change, m), wire.Code_MIGRATION_ENDED)
	x.do(cmd{kind: kBegin, node: 0, inc: 1, epoch: 4, to: 1, toInc: 2, num: 2}, ok)
	x.do(cmd{kind: kBegin, node: 0, inc: 1, epoch: 4, to: 2, toInc: 3, num: 3}, wire.Code_MIGRATION_ACTIVE)
}

// S7: a pivot opens attachment 1 for who is warm, and for nobody else.
func pivotAttaches(t *testing.T) {
	x := newTale(t, 2, true)
	m := x.do(begin(1), ok).mig
	x.do(pivot(m, x.row().change, m), ok)
	x.is("one is attached", x.row().num == [clientsMax]uint8{1, 0})
}
