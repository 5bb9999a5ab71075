package rpcnet

import (
	"testing"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// leasedFrame answers an attempt of a query under a lease that lasts for left.
func leasedFrame(seq uint64, attempt uint32, left time.Duration, payload string) *wire.ServerFrame {
	f := replyFrame(seq, 5, payload)
	f.GetResponse().Attempt, f.GetResponse().LeaseLeftUs = attempt, uint64(left.Microseconds())
	return f
}

// TestLeaseAnswerInTime is taken: less has passed since the query was sent than
// the lease had left.
func TestLeaseAnswerInTime(t *testing.T) {
	s := attached(t)
	s.read("r")
	s.pass(100*ms - 1)
	s.want(s.frame(1, leasedFrame(1, 1, 100*ms, "x")), `answer r ok "x"`)
	if r := s.call["r"].reply; !r.Leased || r.At != s.now {
		t.Fatalf("%+v", r)
	}
}

// TestLeaseAnswerTooLate is not: the query goes again, to be confirmed.
func TestLeaseAnswerTooLate(t *testing.T) {
	s := attached(t)
	s.read("r")
	s.pass(100 * ms)
	s.want(s.frame(1, leasedFrame(1, 1, 100*ms, "x")), "send 1 read r seq=1 try=2 prev=0 ack=1 confirmed")
	s.pass(500 * ms)
	s.want(s.frame(1, leasedFrame(1, 1, 900*ms, "x")), "") // of the first attempt, still
	s.want(s.frame(1, replyFrame(1, 5, "y")), `answer r ok "y"`)
	if s.call["r"].reply.Leased {
		t.Fatal("a confirmed answer counts as one under a lease")
	}
	if s.c.late != 1 {
		t.Fatalf("late = %d", s.c.late)
	}
}

// TestLeaseAnswerAfterASleep: the machine slept, and its timers with it.
func TestLeaseAnswerAfterASleep(t *testing.T) {
	s := attached(t)
	s.read("r")
	s.slept = time.Minute
	s.want(s.frame(1, leasedFrame(1, 1, 900*ms, "x")), "send 1 read r seq=1 try=2 prev=0 ack=1 confirmed")
}

// TestLeaseErrorTooLate: an error that a handler made of what it read is no
// better than a value.
func TestLeaseErrorTooLate(t *testing.T) {
	s := attached(t)
	s.read("r")
	s.pass(200 * ms)
	f := leasedFrame(1, 1, 100*ms, "")
	f.GetResponse().Code = wire.Code_HANDLER_ERROR
	s.want(s.frame(1, f), "send 1 read r seq=1 try=2 prev=0 ack=1 confirmed")
}

// TestLeaseAnswerOfAFormerAttempt counts from an earlier time than is known any
// more, so it is passed over; the latest attempt is answered too.
func TestLeaseAnswerOfAFormerAttempt(t *testing.T) {
	s := attached(t)
	s.read("r")
	s.want(s.frame(1, refusalFrame(1, 5, wire.Code_RETRY, false)), "")
	s.want(s.pass(10*ms), "send 1 read r seq=1 try=2 prev=0 ack=1")
	s.want(s.frame(1, leasedFrame(1, 1, 900*ms, "x")), "")
	s.want(s.frame(1, leasedFrame(1, 2, 900*ms, "y")), `answer r ok "y"`)
}

// TestLateLeaseAnswerOnTheMove: there is nowhere to send the query at the moment.
// It goes to the next owner, and is still to be confirmed.
func TestLateLeaseAnswerOnTheMove(t *testing.T) {
	s := attached(t)
	s.frame(1, pivotFrame(9, "b", 5))
	s.read("r")
	s.frame(1, frozenFrame(9))
	s.pass(300 * ms)
	s.want(s.frame(1, leasedFrame(1, 1, 100*ms, "x")), "")
	s.want(s.opened(2), "send 2 read r seq=1 try=2 prev=0 ack=1 confirmed")
}

// TestConfirmedQueries: by the caller's wish, one at a time or all.
func TestConfirmedQueries(t *testing.T) {
	s := attached(t)
	p := &call{method: "r", readOnly: true, confirmed: true}
	s.c.ask(s.now, p)
	s.want(s.trace(), "send 1 read r seq=1 try=1 prev=0 ack=1 confirmed")
}

// TestLeaseAnswersShareReadings: the reading of the boot clock for an answer stands
// for when the next query is sent, if that is soon. It was before it, also if the
// machine slept in between; an answer is always held against a reading of its own.
func TestLeaseAnswersShareReadings(t *testing.T) {
	s := attached(t)
	readings := 0
	s.c.cfg.boot = func() time.Duration { readings++; return s.now + s.slept }
	s.read("a")
	s.pass(ms)
	s.want(s.frame(1, leasedFrame(1, 1, 100*ms, "x")), `answer a ok "x"`)
	s.pass(bootAge)
	s.read("b")
	if readings != 2 {
		t.Fatalf("%d readings, want one for the first query and one for its answer", readings)
	}
	s.want(s.frame(1, leasedFrame(2, 1, bootAge+time.Microsecond, "x")), `answer b ok "x"`)
	s.slept = time.Second // after the reading, before the query
	s.read("c")
	s.want(s.frame(1, leasedFrame(3, 1, 900*ms, "x")), "send 1 read c seq=3 try=2 prev=0 ack=3 confirmed")
	s.want(s.frame(1, replyFrame(3, 5, "y")), `answer c ok "y"`)
	s.pass(bootAge + 1)
	s.read("d")
	s.want(s.frame(1, leasedFrame(4, 1, time.Microsecond, "x")), `answer d ok "x"`)
}
