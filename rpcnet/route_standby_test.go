package rpcnet

import (
	"testing"
	"time"

	"github.com/baton-cluster/baton/wire"
)

func standingFrame() *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Standing{Standing: &wire.Standing{}}}
}

func successorFrame(node string, spread time.Duration) *wire.ServerFrame {
	s := &wire.Successor{SpreadUs: uint64(spread.Microseconds())}
	if node != "" {
		s.Node = testNode(node)
	}
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Successor{Successor: s}}
}

// foretoldFrame is attachedFrame with a successor.
func foretoldFrame(node string, epoch uint64, successor string, spread time.Duration) *wire.ServerFrame {
	f := attachedFrame(node, epoch)
	f.GetAttached().Successor, f.GetAttached().SpreadUs = testNode(successor), uint64(spread.Microseconds())
	return f
}

// foretold is a script whose core is attached at a, epoch 5, on route 1, and
// knows b as the successor.
func foretold(t *testing.T, spread time.Duration, edit func(*coreConfig)) *script {
	t.Helper()
	s := newScript(t, edit)
	s.want(s.start(), "dial 1 a:1 attach fresh")
	s.opened(1)
	s.want(s.frame(1, foretoldFrame("a", 5, "b", spread)), "attempt a:1 ok\nready")
	return s
}

// standingBy is foretold with a stream that stands by at b, route 2.
func standingBy(t *testing.T) *script {
	t.Helper()
	s := foretold(t, 0, func(c *coreConfig) { c.standby = true })
	s.want(s.pass(ms), "dial 2 b:1 attach standby")
	s.opened(2)
	s.want(s.frame(2, standingFrame()), "")
	return s
}

func TestStandbyTakesOver(t *testing.T) {
	s := standingBy(t)
	s.want(s.write("w1"), "send 1 write w1 seq=1 try=1 prev=0 ack=1")
	s.want(s.pass(800*ms), "") // the owner is dead: nobody is dialled
	s.want(s.frame(2, foretoldFrame("b", 6, "c", 0)), lines(
		"attempt b:1 ok",
		"move a>b epoch 6 planned false pause 0s",
		"drop 1",
		"send 2 write w1 seq=1 try=2 prev=0 ack=1"))
	s.want(s.frame(2, replyFrame(1, 6, "done")), `answer w1 ok "done"`)
	s.want(s.pass(ms), "dial 3 c:1 attach standby") // the next one
	s.want(s.frame(1, replyFrame(1, 5, "late")), "")
}

// The owner's connection breaks before anybody knows of its death.
func TestStandbyAfterTheConnectionWasLost(t *testing.T) {
	s := standingBy(t)
	s.write("w1")
	s.want(s.lost(1), "drop 1\ndial 3 b:1 attach relay=id-a") // it may have been the network
	s.opened(3)
	s.pass(300 * ms)
	s.want(s.frame(2, foretoldFrame("b", 6, "c", 0)), lines(
		"attempt b:1 ok",
		"move a>b epoch 6 planned false pause 300ms",
		"drop 3",
		"send 2 write w1 seq=1 try=2 prev=0 ack=1"))
}

// A silent owner that is well, but not in reach, is reached through the standby.
func TestSilentOwnerIsReachedThroughTheStandby(t *testing.T) {
	s := standingBy(t)
	s.write("w1")
	s.want(s.pass(time.Second), "dial 3 b:1 attach relay=id-a")
	s.opened(3)
	s.want(s.frame(3, attachedFrame("a", 5)), lines(
		"drop 1",
		"attempt b:1 ok",
		"drop 2", // it named no successor
		"send 3 write w1 seq=1 try=2 prev=0 ack=1"))
}

func TestStandbyIsToldOfAnotherOwner(t *testing.T) {
	s := standingBy(t)
	s.write("w1")
	s.want(s.frame(2, redirectFrame("c", 6)), lines("attempt b:1 not_owner", "drop 2", "dial 3 c:1 attach"))
	s.opened(3)
	s.want(s.frame(3, attachedFrame("c", 6)), lines(
		"move a>c epoch 6 planned false pause 0s",
		"drop 1",
		"attempt c:1 ok",
		"send 3 write w1 seq=1 try=2 prev=0 ack=1"))
}

// The word of another owner comes while the hunt asks somebody else.
func TestStandbyRedirectEndsAVainAttempt(t *testing.T) {
	s := standingBy(t)
	s.write("w1")
	s.want(s.pass(time.Second), "dial 3 b:1 attach relay=id-a")
	s.want(s.frame(2, redirectFrame("c", 6)), lines("attempt b:1 not_owner", "drop 2", "drop 3", "dial 4 c:1 attach"))
}

// The owner that was lost is back, and has the session again.
func TestStandbyRedirectToARestartedOwner(t *testing.T) {
	s := standingBy(t)
	s.write("w1")
	s.want(s.lost(1), "drop 1\ndial 3 b:1 attach relay=id-a")
	s.want(s.frame(2, redirectFrame("a", 6)), lines("attempt b:1 not_owner", "drop 2", "drop 3", "dial 4 a:1 attach"))
}

func TestStaleStandbyRedirectIsIgnored(t *testing.T) {
	s := standingBy(t)
	s.want(s.frame(2, redirectFrame("c", 5)), lines("attempt b:1 not_owner", "drop 2"))
	s.want(s.pass(250*ms), "dial 3 b:1 attach standby") // again, after a while
	s.want(s.frame(3, byeFrame(wire.Code_RETRY)), lines("attempt b:1 retry", "drop 3"))
	s.want(s.pass(450*ms), "")
	s.want(s.pass(50*ms), "dial 4 b:1 attach standby")
}

func TestStandbyFollowsTheSuccessor(t *testing.T) {
	s := standingBy(t)
	s.want(s.frame(1, successorFrame("b", 0)), "")
	s.want(s.frame(1, successorFrame("c", 0)), "drop 2")
	s.want(s.pass(ms), "dial 3 c:1 attach standby")
	s.want(s.frame(1, successorFrame("", 0)), "drop 3") // nobody is left
	s.want(s.pass(time.Minute), "")
}

func TestStandbyStaysAcrossAMove(t *testing.T) {
	s := foretold(t, 0, func(c *coreConfig) { c.standby = true })
	s.frame(1, successorFrame("c", 0))
	s.want(s.pass(ms), "dial 2 c:1 attach standby")
	s.frame(2, standingFrame())
	s.want(s.frame(1, pivotFrame(77, "b", 5)), "dial 3 b:1 attach migration=77 token=t")
	s.opened(3)
	f := foretoldFrame("b", 6, "c", 0)
	f.GetAttached().Pivoted = true
	s.want(s.frame(3, f), lines("move a>b epoch 6 planned true pause 0s", "drop 1", "send 3 confirm 6"))
	s.want(s.frame(2, foretoldFrame("c", 7, "a", 0)), lines(
		"attempt c:1 ok", "move b>c epoch 7 planned false pause 0s", "drop 3"))
}

// Without standby the successor is asked after half a silence, while the owner
// may still answer; if it does, that was all.
func TestSecondNodeIsAskedAfterAShortSilence(t *testing.T) {
	s := foretold(t, 0, nil)
	s.want(s.pass(time.Minute), "")
	s.write("w1")
	s.want(s.pass(499*ms), "")
	s.want(s.pass(ms), "dial 2 b:1 attach standby")
	s.opened(2)
	s.frame(2, standingFrame())
	s.want(s.frame(1, replyFrame(1, 5, "after all")), "drop 2\nanswer w1 ok \"after all\"")
	s.write("w2")
	s.want(s.pass(500*ms), "dial 3 b:1 attach standby")
	s.want(s.frame(3, foretoldFrame("b", 6, "c", 0)), lines(
		"attempt b:1 ok",
		"move a>b epoch 6 planned false pause 0s",
		"drop 1",
		"send 3 write w2 seq=2 try=2 prev=1 ack=2"))
}

// A successor that does not answer is asked once, and the hunt looks elsewhere.
func TestSecondNodeThatIsDownIsNotAskedAgainAndAgain(t *testing.T) {
	s := foretold(t, 0, nil)
	s.write("w1")
	s.want(s.pass(500*ms), "dial 2 b:1 attach standby")
	s.want(s.undialled(2), "attempt b:1 unavailable\ndrop 2")
	s.want(s.pass(499*ms), "")
	s.want(s.pass(ms), "dial 3 b:1 attach standby")
	s.want(s.undialled(3), lines("attempt b:1 unavailable", "drop 3", "dial 4 c:1 attach"))
}

// Many connections to a node are many that come elsewhere when it dies: each
// client waits for its place.
func TestSlots(t *testing.T) {
	slotted := func(c *coreConfig) { c.slot = 0.5 }
	t.Run("silence", func(t *testing.T) {
		s := foretold(t, 4*time.Second, slotted)
		s.write("w1")
		s.want(s.pass(2499*ms), "")
		s.want(s.pass(ms), "dial 2 b:1 attach standby")
	})
	t.Run("lost", func(t *testing.T) {
		s := foretold(t, 4*time.Second, slotted)
		s.want(s.lost(1), "drop 1")
		s.want(s.pass(1999*ms), "")
		s.want(s.pass(ms), "dial 2 b:1 attach standby")
	})
	t.Run("shutting down", func(t *testing.T) {
		s := foretold(t, 4*time.Second, slotted)
		s.want(s.frame(1, byeFrame(wire.Code_SHUTTING_DOWN)), "drop 1")
		s.want(s.pass(1999*ms), "")
		s.want(s.pass(ms), "dial 2 b:1 attach standby")
	})
	t.Run("one session only", func(t *testing.T) { // others of the node live
		s := foretold(t, 4*time.Second, slotted)
		s.want(s.frame(1, byeFrame(wire.Code_RETRY)), "drop 1\ndial 2 b:1 attach standby")
	})
}

// In a crowd nobody asks a second node while the first, whose turn it is, may
// still answer: that would double the crowd. It ends some time.
func TestCrowdAsksOneNodeOnly(t *testing.T) {
	s := foretold(t, 2*time.Second, func(c *coreConfig) { c.slot = 0.25 })
	s.write("w1")
	s.want(s.pass(time.Second), "dial 2 b:1 attach standby")
	s.want(s.pass(2*time.Second), "") // the dial takes long
	s.opened(2)
	s.frame(2, standingFrame())
	s.want(s.pass(500*ms), "dial 3 b:1 attach relay=id-a") // over the same connection
	s.want(s.undialled(3), "attempt b:1 unavailable\ndrop 3")
	s.want(s.pass(2*time.Second), "")
	s.want(s.pass(2*time.Second), "dial 4 c:1 attach")
}

// The crowd of an owner that was lost is not over because its successor, which has
// few clients yet, foretells none.
func TestCrowdOutlastsTheSuccessorsWord(t *testing.T) {
	s := foretold(t, 4*time.Second, nil)
	s.write("w1")
	s.want(s.lost(1), "drop 1\ndial 2 b:1 attach standby")
	s.opened(2)
	s.frame(2, foretoldFrame("b", 6, "c", 0))
	s.want(s.lost(2), "drop 2\ndial 3 c:1 attach standby")
	s.opened(3)
	s.want(s.pass(3999*ms), "") // c may take longer than alone
	s.want(s.pass(ms), "attempt c:1 unavailable\ndrop 3 silent\ndial 4 a:1 attach")
	s.pass(8*time.Second + crowdBusy)
	if d := s.c.inCrowd(s.now); d != 0 {
		t.Errorf("it is a crowd of %v after all", d)
	}
}

// An attempt at the successor while the owner is still in office waits there.
func TestAttemptStandsBy(t *testing.T) {
	s := foretold(t, 0, nil)
	s.write("w1")
	s.want(s.lost(1), "drop 1\ndial 2 b:1 attach standby")
	s.opened(2)
	s.want(s.frame(2, standingFrame()), "")
	s.want(s.pass(249*ms), "")
	s.want(s.pass(ms), "dial 3 c:1 attach") // the hunt goes on beside it
	s.want(s.frame(2, foretoldFrame("b", 6, "c", 0)), lines(
		"attempt b:1 ok",
		"move a>b epoch 6 planned false pause 250ms",
		"drop 3",
		"send 2 write w1 seq=1 try=2 prev=0 ack=1"))
}

// One that lost the owner for another reason than its end finds it there.
func TestAttemptFindsTheOwnerInOffice(t *testing.T) {
	s := foretold(t, 0, nil)
	s.write("w1")
	s.want(s.frame(1, byeFrame(wire.Code_RETRY)), "drop 1\ndial 2 b:1 attach standby")
	s.opened(2)
	f := standingFrame()
	f.GetStanding().Owner, f.GetStanding().Epoch = testNode("a"), 5
	s.want(s.frame(2, f), "dial 3 a:1 attach")
	s.opened(3)
	s.want(s.frame(3, foretoldFrame("a", 5, "b", 0)), lines(
		"attempt a:1 ok", "send 3 write w1 seq=1 try=2 prev=0 ack=1"))
	s.want(s.frame(3, replyFrame(1, 5, "done")), "drop 2\nanswer w1 ok \"done\"")
}

// A successor that owns the session already says so, and speaks next: a second
// attachment there would displace the one that it is making.
func TestAttemptFindsTheSuccessorInOffice(t *testing.T) {
	s := foretold(t, 0, nil)
	s.write("w1")
	s.want(s.lost(1), "drop 1\ndial 2 b:1 attach standby")
	s.opened(2)
	f := standingFrame()
	f.GetStanding().Owner, f.GetStanding().Epoch = testNode("b"), 6
	s.want(s.frame(2, f), "")
	s.want(s.frame(2, foretoldFrame("b", 6, "c", 0)), lines(
		"attempt b:1 ok",
		"move a>b epoch 6 planned false pause 0s",
		"send 2 write w1 seq=1 try=2 prev=0 ack=1"))
}

// Somebody else knows already that the successor owns the session: it is about to
// say so, and is not asked by another stream.
func TestRedirectToTheStandbyWaitsForIt(t *testing.T) {
	s := standingBy(t)
	s.write("w1")
	s.want(s.lost(1), "drop 1\ndial 3 b:1 attach relay=id-a")
	s.opened(3)
	s.want(s.frame(3, redirectFrame("b", 6)), "drop 3")
	s.want(s.frame(2, foretoldFrame("b", 6, "c", 0)), lines(
		"attempt b:1 ok",
		"move a>b epoch 6 planned false pause 0s",
		"send 2 write w1 seq=1 try=2 prev=0 ack=1"))
}

// The successor that waits is asked again after all where every other node is
// dead: the owner has fallen silent, and is well.
func TestHuntDoesNotStickToTheDead(t *testing.T) {
	s := standingBy(t)
	s.c.book.suspect("c:1", s.now+time.Minute)
	s.write("w1")
	s.want(s.pass(time.Second), "dial 3 b:1 attach relay=id-a")
	s.want(s.undialled(3), "attempt b:1 unavailable\ndrop 3")
	s.want(s.pass(10*ms), "dial 4 b:1 attach")
}

// A refusal because many come at once is no sign of death: the node is asked
// again, later.
func TestCrowdedNodeIsAskedAgain(t *testing.T) {
	s := foretold(t, 0, func(c *coreConfig) { c.book = newBook([]string{"a:1"}, 1); c.book.learn(testNode("b")) })
	s.want(s.lost(1), "drop 1\ndial 2 b:1 attach standby")
	s.c.lost(s.now, 2, wire.Errorf(wire.Code_OVERLOADED, "refused"), false)
	s.want(s.trace(), "attempt b:1 overloaded\ndrop 2")
	if s.c.book.suspected("b:1", s.now) {
		t.Error("a node that is crowded is taken for dead")
	}
	s.want(s.pass(49*ms), "")
	s.want(s.pass(ms), "dial 3 b:1 attach standby")
}

func TestRelayOnlyClientStandsNowhere(t *testing.T) {
	s := newScript(t, func(c *coreConfig) { c.relay, c.standby = true, true })
	s.start()
	s.opened(1)
	s.frame(1, foretoldFrame("a", 5, "b", time.Second))
	s.write("w1")
	s.want(s.pass(999*ms), "")
}

func TestEndDropsTheStandby(t *testing.T) {
	s := standingBy(t)
	s.want(s.frame(1, byeFrame(wire.Code_SESSION_EXPIRED)), "drop 1\ndrop 2\nend")
	s.want(s.frame(2, foretoldFrame("b", 6, "c", 0)), "")
}

// TestOneStreamStandsBy, where the successor is dialled for the session while an attempt
// there is under way.
func TestOneStreamStandsBy(t *testing.T) {
	s := standingBy(t)
	s.frame(2, byeFrame(wire.Code_RETRY))
	s.want(s.lost(1), "drop 1\ndial 3 b:1 attach standby")
	s.want(s.pass(standbyAgainMin), "dial 4 b:1 attach standby")
	s.opened(3)
	s.opened(4)
	s.want(s.frame(3, standingFrame()), "drop 4")
}
