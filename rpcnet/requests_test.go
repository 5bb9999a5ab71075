package rpcnet

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// script drives a core by hand: each method is one event, and returns what the
// core wants done, as text, one action a line.
type script struct {
	t   *testing.T
	c   *core
	now time.Duration
	// slept is how much longer the machine has been up than its timers ran.
	slept time.Duration
	call  map[string]*call
}

const ms = time.Millisecond

func testNode(name string) *wire.NodeInfo {
	return &wire.NodeInfo{Id: "id-" + name, Name: name, Host: name, UserPort: 1}
}

// newScript makes a core that knows the nodes a, b and c, at a:1 and so on, and
// asks them in this order.
func newScript(t *testing.T, edit func(*coreConfig)) *script {
	t.Helper()
	bk := newBook([]string{"a:1"}, 2)
	bk.learn(testNode("a"), testNode("b"), testNode("c"))
	cfg := coreConfig{
		session: "s", secret: make([]byte, wire.SecretBytes), instance: make([]byte, wire.IDBytes),
		cluster: func() []byte { return nil }, silence: time.Second, suspect: 2 * time.Second, book: bk,
		jitter: func(time.Duration) time.Duration { return 0 },
	}
	if edit != nil {
		edit(&cfg)
	}
	s := &script{t: t, now: time.Second, call: map[string]*call{}}
	cfg.boot = func() time.Duration { return s.now + s.slept }
	s.c = newCore(cfg)
	return s
}

// attached is a script whose core is attached at a, epoch 5, on route 1.
func attached(t *testing.T) *script {
	t.Helper()
	s := newScript(t, nil)
	s.want(s.start(), "dial 1 a:1 attach fresh")
	s.want(s.opened(1), "")
	s.want(s.frame(1, attachedFrame("a", 5)), "attempt a:1 ok\nready")
	return s
}

func (s *script) start() string { s.c.start(s.now); return s.trace() }

func (s *script) opened(id int) string { s.c.opened(s.now, id); return s.trace() }

func (s *script) frame(id int, f *wire.ServerFrame) string {
	s.c.frame(s.now, id, f)
	return s.trace()
}

func (s *script) lost(id int) string {
	s.c.lost(s.now, id, wire.Errorf(wire.Code_UNAVAILABLE, "lost"), true)
	return s.trace()
}

func (s *script) undialled(id int) string {
	s.c.lost(s.now, id, wire.Errorf(wire.Code_UNAVAILABLE, "no answer"), false)
	return s.trace()
}

// pass lets time pass, ticking whenever the core wants it.
func (s *script) pass(d time.Duration) string {
	end := s.now + d
	for s.c.wake() > 0 && s.c.wake() <= end {
		at := s.c.wake()
		if at > s.now {
			s.now = at
		}
		s.c.tick(s.now)
		if s.c.wake() == at {
			s.t.Fatalf("the core wants to be woken at %v for ever", at)
		}
	}
	s.now = end
	return s.trace()
}

func (s *script) write(name string) string { return s.ask(name, false, 0) }
func (s *script) read(name string) string  { return s.ask(name, true, 0) }

func (s *script) ask(name string, readOnly bool, deadline time.Duration) string {
	p := &call{method: name, readOnly: readOnly, deadline: deadline}
	s.call[name] = p
	s.c.ask(s.now, p)
	return s.trace()
}

func (s *script) abandon(name string) string {
	p := s.call[name]
	s.c.abandon(s.now, p, expired(p, context.Canceled))
	return s.trace()
}

func (s *script) want(got, want string) {
	s.t.Helper()
	if got != want {
		s.t.Fatalf("the core did\n%s\nwant\n%s", indent(got), indent(want))
	}
}

func indent(s string) string { return "\t" + strings.ReplaceAll(s, "\n", "\n\t") }

func (s *script) trace() string {
	var out []string
	for _, a := range s.c.take() {
		out = append(out, describe(&a))
	}
	return strings.Join(out, "\n")
}

func describe(a *action) string {
	switch a.kind {
	case actDial:
		return fmt.Sprintf("dial %d %s %s", a.route, a.addr, describeFrame(a.frame))
	case actSend:
		return fmt.Sprintf("send %d %s", a.route, describeFrame(a.frame))
	case actListen:
		return fmt.Sprintf("listen %d", a.route)
	case actDrop:
		if a.silent {
			return fmt.Sprintf("drop %d silent", a.route)
		}
		return fmt.Sprintf("drop %d", a.route)
	case actRelease:
		if a.call.err != nil {
			return fmt.Sprintf("answer %s %s", a.call.method, wire.CodeOf(a.call.err).Label())
		}
		return fmt.Sprintf("answer %s ok %q", a.call.method, a.call.reply.Payload)
	case actPush:
		return fmt.Sprintf("push %d", a.push.Seq)
	case actMove:
		return fmt.Sprintf("move %s>%s epoch %d planned %v pause %v", a.move.From.GetName(), a.move.To.GetName(), a.move.Epoch, a.move.Planned, a.move.Pause)
	case actAttempt:
		if a.attempt.Err != nil {
			return fmt.Sprintf("attempt %s %s", a.attempt.Addr, wire.CodeOf(a.attempt.Err).Label())
		}
		return fmt.Sprintf("attempt %s ok", a.attempt.Addr)
	case actReady:
		return "ready"
	case actEnd:
		return "end"
	}
	return "?"
}

func describeFrame(f *wire.ClientFrame) string {
	switch k := f.Kind.(type) {
	case *wire.ClientFrame_Open:
		return "open"
	case *wire.ClientFrame_Attach:
		a, out := k.Attach, "attach"
		if a.GetFresh() {
			out += " fresh"
		}
		if a.GetRelay() {
			out += " relay=" + a.GetRelayTo()
		}
		if a.GetStandby() {
			out += " standby"
		}
		if a.GetMigration() != 0 {
			out += fmt.Sprintf(" migration=%d token=%s", a.GetMigration(), a.GetToken())
		}
		if a.GetPushAck() != 0 {
			out += fmt.Sprintf(" pushes<=%d", a.GetPushAck())
		}
		return out
	case *wire.ClientFrame_Request:
		r, kind := k.Request, "write"
		if r.GetReadOnly() {
			kind = "read"
		}
		out := fmt.Sprintf("%s %s seq=%d try=%d prev=%d ack=%d", kind, r.GetMethod(), r.GetSeq(), r.GetAttempt(), r.GetPrev(), r.GetAck())
		if r.GetPushAck() != 0 {
			out += fmt.Sprintf(" pushes<=%d", r.GetPushAck())
		}
		if r.GetConfirmed() {
			out += " confirmed"
		}
		return out
	case *wire.ClientFrame_Cancel:
		return fmt.Sprintf("cancel seq=%d prev=%d ack=%d", k.Cancel.GetSeq(), k.Cancel.GetPrev(), k.Cancel.GetAck())
	case *wire.ClientFrame_PushAck:
		return fmt.Sprintf("pushes<=%d ack=%d", k.PushAck.GetSeq(), k.PushAck.GetAck())
	case *wire.ClientFrame_Close:
		return "close"
	case *wire.ClientFrame_Detach:
		return "detach"
	case *wire.ClientFrame_Confirm:
		return fmt.Sprintf("confirm %d", k.Confirm.GetEpoch())
	}
	return "?"
}

func attachedFrame(node string, epoch uint64) *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Attached{Attached: &wire.Attached{Session: "s", Epoch: epoch, Node: testNode(node)}}}
}

func pivotedFrame(node string, epoch uint64) *wire.ServerFrame {
	f := attachedFrame(node, epoch)
	f.GetAttached().Pivoted = true
	return f
}

func replyFrame(seq, epoch uint64, payload string) *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Response{Response: &wire.Response{Seq: seq, Epoch: epoch, Settled: true, Payload: []byte(payload)}}}
}

func refusalFrame(seq, epoch uint64, code wire.Code, settled bool) *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Response{Response: &wire.Response{Seq: seq, Epoch: epoch, Code: code, Settled: settled}}}
}

func byeFrame(code wire.Code) *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Bye{Bye: &wire.Bye{Code: code}}}
}

func redirectFrame(node string, epoch uint64) *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Redirect{Redirect: &wire.Redirect{Owner: testNode(node), Epoch: epoch}}}
}

func pushFrame(seq, epoch uint64) *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Push{Push: &wire.PushFrame{Seq: seq, Epoch: epoch}}}
}

func TestRequestsAreNumberedAndChained(t *testing.T) {
	s := attached(t)
	s.want(s.write("w1"), "send 1 write w1 seq=1 try=1 prev=0 ack=1")
	s.want(s.read("r"), "send 1 read r seq=2 try=1 prev=0 ack=1")
	s.want(s.write("w2"), "send 1 write w2 seq=3 try=1 prev=1 ack=1")
	s.want(s.frame(1, replyFrame(2, 5, "x")), `answer r ok "x"`)
	s.want(s.frame(1, replyFrame(1, 5, "y")), `answer w1 ok "y"`)
	s.want(s.write("w3"), "send 1 write w3 seq=4 try=1 prev=3 ack=3")
	s.want(s.frame(1, replyFrame(1, 5, "again")), "")
}

func TestLostReplyIsAskedForAgainOnANewRoute(t *testing.T) {
	s := attached(t)
	s.want(s.write("w1"), "send 1 write w1 seq=1 try=1 prev=0 ack=1")
	s.want(s.write("w2"), "send 1 write w2 seq=2 try=1 prev=1 ack=1")
	s.want(s.lost(1), "drop 1\ndial 2 b:1 attach")
	s.want(s.write("w3"), "")
	s.want(s.opened(2), "")
	s.want(s.frame(2, attachedFrame("b", 6)), strings.Join([]string{
		"move a>b epoch 6 planned false pause 0s",
		"attempt b:1 ok",
		"send 2 write w1 seq=1 try=2 prev=0 ack=1",
		"send 2 write w2 seq=2 try=2 prev=1 ack=1",
		"send 2 write w3 seq=3 try=1 prev=2 ack=1",
	}, "\n"))
	s.want(s.frame(2, replyFrame(1, 6, "cached")), `answer w1 ok "cached"`)
	if got := s.call["w1"].reply.Attempts; got != 2 {
		t.Errorf("Attempts = %d, want 2", got)
	}
}

func TestAbandonedWriteIsCancelledInItsPlace(t *testing.T) {
	s := attached(t)
	s.want(s.write("w1"), "send 1 write w1 seq=1 try=1 prev=0 ack=1")
	s.want(s.write("w2"), "send 1 write w2 seq=2 try=1 prev=1 ack=1")
	s.want(s.abandon("w1"), "answer w1 deadline_exceeded\nsend 1 cancel seq=1 prev=0 ack=1")
	if err := s.call["w1"].err; !errors.Is(err, context.Canceled) || !errors.Is(err, &wire.Error{Code: wire.Code_DEADLINE_EXCEEDED}) {
		t.Errorf("the caller got %v", err)
	}
	// The route breaks before the cancel is answered: it goes again, before its
	// successors, and in its own place.
	s.want(s.lost(1), "drop 1\ndial 2 b:1 attach")
	s.opened(2)
	s.want(s.frame(2, attachedFrame("a", 5)), strings.Join([]string{
		"attempt b:1 ok",
		"send 2 cancel seq=1 prev=0 ack=1",
		"send 2 write w2 seq=2 try=2 prev=1 ack=1",
	}, "\n"))
	// An unsettled refusal of the cancel is not its end.
	s.want(s.frame(2, refusalFrame(1, 5, wire.Code_RETRY, false)), "")
	s.want(s.pass(10*ms), "send 2 cancel seq=1 prev=0 ack=1")
	s.want(s.frame(2, refusalFrame(1, 5, wire.Code_CANCELLED, true)), "")
	s.want(s.write("w3"), "send 2 write w3 seq=3 try=1 prev=2 ack=2")
	s.want(s.abandon("w1"), "")
}

func TestAbandonedReadIsForgotten(t *testing.T) {
	s := attached(t)
	s.read("r")
	s.want(s.abandon("r"), "answer r deadline_exceeded")
	s.want(s.frame(1, replyFrame(1, 5, "late")), "")
	s.want(s.write("w"), "send 1 write w seq=2 try=1 prev=0 ack=2")
}

func TestWriteThatNeverLeftNeedsNoCancel(t *testing.T) {
	s := newScript(t, nil)
	s.start()
	s.want(s.write("w1")+s.write("w2")+s.write("w3"), "")
	s.want(s.abandon("w2"), "answer w2 deadline_exceeded")
	s.opened(1)
	s.want(s.frame(1, attachedFrame("a", 5)), strings.Join([]string{
		"attempt a:1 ok",
		"ready",
		"send 1 write w1 seq=1 try=1 prev=0 ack=1",
		"send 1 write w3 seq=3 try=1 prev=1 ack=1",
	}, "\n"))
	s.want(s.abandon("w3"), "answer w3 deadline_exceeded\nsend 1 cancel seq=3 prev=1 ack=1")
	s.want(s.write("w4"), "send 1 write w4 seq=4 try=1 prev=3 ack=1")
}

func TestDeadlineAbandons(t *testing.T) {
	s := attached(t)
	s.want(s.ask("w", false, s.now+300*ms), "send 1 write w seq=1 try=1 prev=0 ack=1")
	s.want(s.pass(299*ms), "")
	s.want(s.pass(ms), "answer w deadline_exceeded\nsend 1 cancel seq=1 prev=0 ack=1")
	if err := s.call["w"].err; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the caller got %v", err)
	}
}

func TestSettledErrorIsFinal(t *testing.T) {
	s := attached(t)
	s.write("w1")
	s.want(s.frame(1, refusalFrame(1, 5, wire.Code_HANDLER_ERROR, true)), "answer w1 handler_error")
	s.want(s.write("w2"), "send 1 write w2 seq=2 try=1 prev=1 ack=2")
}

func TestUnsettledRefusalIsReturnedAndSettledByCancel(t *testing.T) {
	s := attached(t)
	s.write("w1")
	s.write("w2")
	s.want(s.frame(1, refusalFrame(1, 5, wire.Code_STATE_TOO_LARGE, false)), "answer w1 state_too_large\nsend 1 cancel seq=1 prev=0 ack=1")
	// w2 came before the cancel and was refused for it: it goes as soon as the
	// cancel is settled.
	s.want(s.frame(1, refusalFrame(2, 5, wire.Code_SEQ_MISMATCH, false)), "")
	s.want(s.frame(1, refusalFrame(1, 5, wire.Code_CANCELLED, true)), "send 1 write w2 seq=2 try=2 prev=1 ack=2")
}

func TestUnsettledRetryableIsSentAgainWithItsSuccessorsBehind(t *testing.T) {
	s := attached(t)
	s.write("w1")
	s.want(s.frame(1, refusalFrame(1, 5, wire.Code_OVERLOADED, false)), "")
	s.want(s.write("w2"), "")
	s.want(s.read("r"), "send 1 read r seq=3 try=1 prev=0 ack=1")
	s.want(s.pass(5*ms), "send 1 write w1 seq=1 try=2 prev=0 ack=1\nsend 1 write w2 seq=2 try=1 prev=1 ack=1")
}

func TestLackOfSpaceIsToldAfterAFewRefusals(t *testing.T) {
	s := attached(t)
	s.write("w1")
	for range refusalsMax - 1 {
		s.want(s.frame(1, refusalFrame(1, 5, wire.Code_BUDGET_EXCEEDED, false)), "")
		if got := s.pass(100 * ms); !strings.HasPrefix(got, "send 1 write w1 seq=1") {
			t.Fatalf("not sent again: %q", got)
		}
	}
	s.want(s.frame(1, refusalFrame(1, 5, wire.Code_BUDGET_EXCEEDED, false)), "answer w1 budget_exceeded\nsend 1 cancel seq=1 prev=0 ack=1")
}

func TestReadRefusalIsReturned(t *testing.T) {
	s := attached(t)
	s.read("r")
	s.want(s.frame(1, refusalFrame(1, 5, wire.Code_NOT_READ_ONLY, false)), "answer r not_read_only")
}

func TestWritesInFlightAreBounded(t *testing.T) {
	s := attached(t)
	for i := range WritesInFlightMax {
		if s.write(fmt.Sprint("w", i)) == "" {
			t.Fatalf("write %d was not sent", i)
		}
	}
	s.want(s.write("waits"), "")
	s.want(s.write("waits too"), "")
	s.want(s.read("reads do not wait"), fmt.Sprintf("send 1 read reads do not wait seq=%d try=1 prev=0 ack=1", WritesInFlightMax+1))
	s.want(s.abandon("waits"), "answer waits deadline_exceeded")
	s.want(s.frame(1, replyFrame(1, 5, "")), "answer w0 ok \"\"\n"+
		fmt.Sprintf("send 1 write waits too seq=%d try=1 prev=%d ack=2", WritesInFlightMax+2, WritesInFlightMax))
}

func TestFrameLimitIsCheckedBeforeASeqIsUsed(t *testing.T) {
	s := attached(t)
	p := &call{method: "big", payload: make([]byte, wire.FrameBytesMax)}
	s.c.ask(s.now, p)
	s.want(s.trace(), "answer big frame_too_large")
	s.want(s.write("w"), "send 1 write w seq=1 try=1 prev=0 ack=1")
}

func TestEndAnswersEverything(t *testing.T) {
	for _, code := range []wire.Code{wire.Code_SESSION_CLOSED, wire.Code_SESSION_EXPIRED, wire.Code_UNKNOWN_SESSION, wire.Code_CLIENT_GONE, wire.Code_DISPLACED} {
		s := attached(t)
		s.write("w")
		s.read("r")
		l := code.Label()
		s.want(s.frame(1, byeFrame(code)), "answer w "+l+"\nanswer r "+l+"\ndrop 1\nend")
		s.want(s.write("later"), "answer later "+l)
		s.want(s.pass(time.Minute), "")
	}
}

func TestSettledTableDoesNotGrow(t *testing.T) {
	s := attached(t)
	s.read("stuck")
	for i := range 10_000 {
		s.read("r")
		s.frame(1, replyFrame(uint64(i+2), 5, ""))
	}
	if n := len(s.c.order); n > 200 {
		t.Errorf("%d calls in the table for one that is out", n)
	}
}

// TestCancelRefusedForSpaceGoesAgain: without an outcome of the write that it replaces
// no later one can run.
func TestCancelRefusedForSpaceGoesAgain(t *testing.T) {
	s := attached(t)
	s.write("w1")
	for range refusalsMax - 1 {
		s.frame(1, refusalFrame(1, 5, wire.Code_BUDGET_EXCEEDED, false))
		s.pass(retryMax)
	}
	s.want(s.abandon("w1"), "answer w1 deadline_exceeded\nsend 1 cancel seq=1 prev=0 ack=1")
	s.want(s.frame(1, refusalFrame(1, 5, wire.Code_BUDGET_EXCEEDED, false)), "")
	s.want(s.pass(retryMax), "send 1 cancel seq=1 prev=0 ack=1")
}

// TestMethodsAreText: what no frame can carry is refused at once, not waited for.
func TestMethodsAreText(t *testing.T) {
	s := attached(t)
	s.want(s.write("\xff"), "answer \xff bad_request")
	s.want(s.write("w"), "send 1 write w seq=1 try=1 prev=0 ack=1")
}
