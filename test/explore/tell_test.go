package explore

import (
	"fmt"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/wire"
)

// Tell makes words of a step.
func (w *world) Tell(s *state, st *step) string {
	a, b := st.Args[0], st.Args[1]
	n := int(a) + 1
	switch st.Kind {
	case stCommit, stCommitLost, stCommitTwice:
		sl := s.slot(a, b)
		after, ans := w.b.commit(s.head, sl.prop, s.now)
		how := [...]string{stCommit: "", stCommitLost: ", and the answer is lost", stCommitTwice: ", and a copy of it is still on its way"}[st.Kind]
		return fmt.Sprintf("%s: %s%s", w.tellProp(sl.prop), w.tellAnswer(s.head, after, ans), how)
	case stResult:
		return fmt.Sprintf("%s hears what became of: %s", w.who(a, b), w.tellProp(s.slot(a, b).prop))
	case stStray, stStrayAgain:
		p := s.stray[a]
		after, ans := w.b.commit(s.head, p, s.now)
		return fmt.Sprintf("late, %s: %s", w.tellProp(p), w.tellAnswer(s.head, after, ans)) + [...]string{stStray: "", stStrayAgain: ", and a copy of it is still on its way"}[st.Kind]
	case stObserve:
		return fmt.Sprintf("node %d applies what is committed", n)
	case stRegister:
		return fmt.Sprintf("node %d registers", n)
	case stRestart:
		return fmt.Sprintf("node %d starts again", n)
	case stCrash:
		return fmt.Sprintf("node %d crashes", n)
	case stFence:
		return fmt.Sprintf("the lease of node %d has run out, and it is fenced", n)
	case stAssign:
		return fmt.Sprintf("the session is assigned to node %d", n)
	case stTick:
		return "log time passes every deadline and TTL"
	case stExpire:
		return "the leader proposes that the session expire"
	case stCut:
		return fmt.Sprintf("the stream of client %c to node %d breaks", 'a'+b, n)
	case stGone:
		return fmt.Sprintf("client %c is gone without a word", 'a'+a)
	case stAttach:
		return fmt.Sprintf("client %c attaches at node %d", 'a'+b, n)
	case stSend:
		return fmt.Sprintf("client %c sends its %s to node %d", 'a'+b, [...]string{'w': "write", 'r': "query", 'R': "query to be confirmed"}[w.ask(&s.c[b])], n)
	case stVersion:
		return fmt.Sprintf("node %d runs the query of client %c", n, 'a'+b)
	case stUnderLease:
		return fmt.Sprintf("node %d looks at its lease for client %c", n, 'a'+b)
	case stMarker:
		return fmt.Sprintf("node %d sends a marker", n)
	case stClose:
		return fmt.Sprintf("client %c closes the session at node %d", 'a'+b, n)
	}
	return w.tellMove(s, st)
}

// tellMove makes words of a step of a move.
func (w *world) tellMove(s *state, st *step) string {
	a, b := st.Args[0], st.Args[1]
	n := int(a) + 1
	switch st.Kind {
	case stAskMove:
		return fmt.Sprintf("a move to node %d is asked for", n)
	case stTakeHandover:
		return fmt.Sprintf("node %d is told to hand over", n)
	case stTakeTransfer, stLetterAgain:
		return fmt.Sprintf("the snapshot arrives at node %d", n) + [...]string{stTakeTransfer: "", stLetterAgain: ", and a copy of it is still on its way"}[st.Kind]
	case stGiveUp:
		return fmt.Sprintf("node %d waits no longer and asks the log to decide", n)
	case stPrepare:
		return fmt.Sprintf("node %d is told of the move", b+1)
	case stInvite:
		return fmt.Sprintf("node %d invites its clients", b+1)
	case stAwaitWarm:
		return fmt.Sprintf("node %d says who is warm", b+1)
	case stCallFails:
		return fmt.Sprintf("director %d gets no answer to its call (%v)", n, migrate.ActionKind(s.d[a].call))
	case stWarm:
		return fmt.Sprintf("client %c is warm at node %d", 'a'+b, n)
	case stLook, stScan:
		return fmt.Sprintf("director %d looks at the log", n)
	case stTimeUp:
		return fmt.Sprintf("a time-out of director %d", n)
	case stAdopt:
		return fmt.Sprintf("director %d finds the move in the log", n)
	case stDirectorDies:
		return fmt.Sprintf("director %d dies", n)
	}
	return fmt.Sprint("step ", st.Kind, st.Args)
}

func (w *world) who(i, k uint8) string {
	if k == slotDirector {
		return fmt.Sprint("director ", i+1)
	}
	return fmt.Sprint("node ", i+1)
}

func (w *world) tellProp(p uint16) string {
	v := w.b.props.at(uint32(p))
	text := w.tellCmd(v.a)
	if v.b.kind != kNone {
		text += " + " + w.tellCmd(v.b)
	}
	return text
}

var kindWords = [...]string{
	kRegister: "Register", kFence: "Fence", kAssign: "Assign", kAttach: "Attach", kDetach: "Detach", kClaim: "Claim", kWrite: "Write",
	kCancel: "Cancel", kMarker: "Marker", kClose: "Close", kExpire: "Expire", kBegin: "Begin", kPivot: "Pivot", kAbort: "Abort", kEnd: "End", kTick: "Tick",
}

func (w *world) tellCmd(c cmd) string {
	switch c.kind {
	case kPivot:
		return fmt.Sprintf("Pivot of move %d at change %d", c.mig, c.change)
	case kAbort, kEnd:
		return fmt.Sprintf("%s of move %d", kindWords[c.kind], c.mig)
	case kWrite:
		return fmt.Sprintf("Write(seq %d, value %d) of client %c by node %d in epoch %d", c.seq, c.value, 'a'+c.client, c.node+1, c.epoch)
	case kAttach, kDetach:
		return fmt.Sprintf("%s(%d) of client %c by node %d in epoch %d", kindWords[c.kind], c.num, 'a'+c.client, c.node+1, c.epoch)
	case kBegin:
		return fmt.Sprintf("Begin of a move from node %d to node %d in epoch %d", c.node+1, c.to+1, c.epoch)
	case kMarker:
		return fmt.Sprintf("Marker of incarnation %d of node %d", c.inc, c.node+1)
	}
	return fmt.Sprintf("%s by node %d in epoch %d", kindWords[c.kind], c.node+1, c.epoch)
}

func (w *world) tellAnswer(before, after uint32, ans uint16) string {
	a := w.b.answers.at(uint32(ans))
	text := wire.Code(a.a.code).Label()
	if a.a.dup {
		text += ", already done"
	}
	if a.b != (result{}) {
		text += " + " + wire.Code(a.b.code).Label()
	}
	if after != before {
		text += ", committed"
	}
	return text
}
