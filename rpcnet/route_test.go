package rpcnet

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/baton-cluster/baton/wire"
)

func lines(l ...string) string { return strings.Join(l, "\n") }

func pivotFrame(migration uint64, target string, epoch uint64) *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Pivot{Pivot: &wire.Pivot{Migration: migration, Target: testNode(target), Token: []byte("t"), Epoch: epoch}}}
}

func frozenFrame(migration uint64) *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Frozen{Frozen: &wire.Frozen{Migration: migration}}}
}

func unfrozenFrame(migration uint64) *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Unfrozen{Unfrozen: &wire.Unfrozen{Migration: migration}}}
}

func bouncedFrame(migration uint64) *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Bounced{Bounced: &wire.Bounced{Migration: migration}}}
}

func warmFrame(migration uint64) *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Warm{Warm: &wire.Warm{Migration: migration}}}
}

// pivoting is attached at a, epoch 5, with one write out and route 2 warm at b.
func pivoting(t *testing.T) *script {
	t.Helper()
	s := attached(t)
	s.want(s.write("w1"), "send 1 write w1 seq=1 try=1 prev=0 ack=1")
	s.want(s.frame(1, pivotFrame(77, "b", 5)), "dial 2 b:1 attach migration=77 token=t")
	s.want(s.opened(2), "")
	s.want(s.frame(2, warmFrame(77)), "")
	return s
}

func TestPivot(t *testing.T) {
	s := pivoting(t)
	s.want(s.write("w2"), "send 1 write w2 seq=2 try=1 prev=1 ack=1")
	s.want(s.frame(1, frozenFrame(77)), lines(
		"send 2 write w1 seq=1 try=2 prev=0 ack=1",
		"send 2 write w2 seq=2 try=2 prev=1 ack=1"))
	s.want(s.write("w3"), "send 2 write w3 seq=3 try=1 prev=2 ack=1")
	// The source had committed w1 before it froze; its answer may come later.
	s.want(s.frame(1, replyFrame(1, 5, "from the source")), `answer w1 ok "from the source"`)
	s.pass(40 * ms)
	s.want(s.frame(2, pivotedFrame("b", 6)), lines(
		"move a>b epoch 6 planned true pause 40ms",
		"drop 1",
		"send 2 confirm 6"))
	s.want(s.frame(2, replyFrame(2, 6, "two")), `answer w2 ok "two"`)
	s.want(s.frame(2, replyFrame(3, 6, "three")), `answer w3 ok "three"`)
	s.want(s.frame(1, replyFrame(3, 5, "stale")), "")
	s.want(s.lost(1), "")
}

func TestPivotWithoutSeeingTheFreeze(t *testing.T) {
	s := pivoting(t)
	s.want(s.frame(2, pivotedFrame("b", 6)), lines(
		"move a>b epoch 6 planned true pause 0s",
		"drop 1",
		"send 2 confirm 6",
		"send 2 write w1 seq=1 try=2 prev=0 ack=1"))
}

func TestUnfrozenGoesBack(t *testing.T) {
	s := pivoting(t)
	s.frame(1, frozenFrame(77))
	s.want(s.write("w2"), "send 2 write w2 seq=2 try=1 prev=1 ack=1")
	s.want(s.frame(1, unfrozenFrame(77)), lines(
		"drop 2",
		"send 1 write w1 seq=1 try=3 prev=0 ack=1",
		"send 1 write w2 seq=2 try=2 prev=1 ack=1"))
	// A later migration of the same session works.
	s.want(s.frame(1, pivotFrame(78, "c", 5)), "dial 3 c:1 attach migration=78 token=t")
}

func TestBouncedGoesBack(t *testing.T) {
	s := pivoting(t)
	s.frame(1, frozenFrame(77))
	s.want(s.frame(2, bouncedFrame(77)), "drop 2")
	s.want(s.read("r"), "") // the source would pass over it
	s.want(s.frame(1, unfrozenFrame(77)), lines(
		"send 1 write w1 seq=1 try=3 prev=0 ack=1",
		"send 1 read r seq=2 try=1 prev=0 ack=1"))
}

func TestFrozenHoldsRequestsUntilTheWarmStreamStands(t *testing.T) {
	s := attached(t)
	s.want(s.frame(1, pivotFrame(77, "b", 5)), "dial 2 b:1 attach migration=77 token=t")
	s.want(s.frame(1, frozenFrame(77)), "")
	s.want(s.write("w1"), "")
	s.want(s.opened(2), "send 2 write w1 seq=1 try=1 prev=0 ack=1")
	s.want(s.frame(2, pivotedFrame("b", 6)), lines("move a>b epoch 6 planned true pause 0s", "drop 1", "send 2 confirm 6"))
}

func TestCancelGoesToTheTargetWhileFrozen(t *testing.T) {
	s := pivoting(t)
	s.frame(1, frozenFrame(77))
	s.want(s.abandon("w1"), "answer w1 deadline_exceeded\nsend 2 cancel seq=1 prev=0 ack=1")
}

func TestWarmGoesThroughARelayWhereTheTargetCannotBeDialled(t *testing.T) {
	s := attached(t)
	s.frame(1, pivotFrame(77, "b", 5))
	// Through c: a is the source, which is about to go.
	s.want(s.undialled(2), "drop 2\ndial 3 c:1 attach relay=id-b migration=77 token=t")
	s.want(s.undialled(3), lines("drop 3", "dial 4 a:1 attach relay=id-b migration=77 token=t"))
	s.want(s.write("w"), "send 1 write w seq=1 try=1 prev=0 ack=1")
	s.want(s.undialled(4), "drop 4") // the owner was the last way there

	// The same where the relay cannot reach the target either.
	s = attached(t)
	s.frame(1, pivotFrame(77, "b", 5))
	s.undialled(2)
	s.opened(3)
	s.want(s.frame(3, byeFrame(wire.Code_UNAVAILABLE)), lines("drop 3", "dial 4 a:1 attach relay=id-b migration=77 token=t"))
}

// TestWarmIsTriedAgain, once, where its stream breaks before the target has answered:
// the connection was to a former process of the target.
func TestWarmIsTriedAgain(t *testing.T) {
	s := attached(t)
	s.frame(1, pivotFrame(77, "b", 5))
	s.want(s.opened(2), "")
	s.want(s.lost(2), "drop 2\ndial 3 b:1 attach migration=77 token=t")
	s.want(s.opened(3), "")
	s.want(s.lost(3), "drop 3")

	s = pivoting(t)
	s.want(s.lost(2), "drop 2")

	// Through a relay: its own connection was to a former process.
	s = attached(t)
	s.frame(1, pivotFrame(77, "b", 5))
	s.want(s.undialled(2), "drop 2\ndial 3 c:1 attach relay=id-b migration=77 token=t")
	s.opened(3)
	s.want(s.frame(3, byeFrame(wire.Code_RETRY)), "drop 3\ndial 4 c:1 attach relay=id-b migration=77 token=t")
	s.opened(4)
	s.want(s.frame(4, byeFrame(wire.Code_RETRY)), "drop 4")

	// The connection has all the sessions that it takes: over another.
	s = attached(t)
	s.frame(1, pivotFrame(77, "b", 5))
	s.opened(2)
	s.want(s.frame(2, byeFrame(wire.Code_CONNECTION_FULL)), "drop 2\ndial 3 b:1 attach migration=77 token=t")
}

// TestWhatIsParkedGoesAgain, where the way to the target breaks during a freeze: the
// target has parked it for the stream that it came on.
func TestWhatIsParkedGoesAgain(t *testing.T) {
	s := attached(t)
	s.frame(1, pivotFrame(77, "b", 5))
	s.undialled(2)
	s.opened(3)
	s.frame(3, warmFrame(77))
	s.frame(1, frozenFrame(77))
	s.want(s.write("w1"), "send 3 write w1 seq=1 try=1 prev=0 ack=1")
	s.want(s.frame(3, byeFrame(wire.Code_UNAVAILABLE)), "drop 3\ndial 4 a:1 attach relay=id-b migration=77 token=t")
	s.want(s.opened(4), "send 4 write w1 seq=1 try=2 prev=0 ack=1")
	s.want(s.frame(4, pivotedFrame("b", 6)), lines("move a>b epoch 6 planned true pause 0s", "drop 1", "send 4 confirm 6"))
}

// TestRestartedOwnerIsTrusted: a node that was lost and that has been made the owner
// since is asked at once, and once for an epoch.
func TestRestartedOwnerIsTrusted(t *testing.T) {
	s := attached(t)
	s.want(s.lost(1), "drop 1\ndial 2 b:1 attach")
	s.opened(2)
	s.want(s.frame(2, redirectFrame("a", 6)), "drop 2\ndial 3 a:1 attach")
	s.want(s.undialled(3), lines("attempt a:1 unavailable", "drop 3"))
	s.want(s.pass(huntMax), "dial 4 c:1 attach")
	s.opened(4)
	s.want(s.frame(4, redirectFrame("a", 6)), "drop 4")
}

func TestSourceLostWhileFrozenGivesTheTargetAWhile(t *testing.T) {
	s := pivoting(t)
	s.frame(1, frozenFrame(77))
	s.want(s.frame(1, byeFrame(wire.Code_MOVED)), "drop 1")
	s.want(s.pass(900*ms), "")
	s.want(s.frame(2, pivotedFrame("b", 6)), lines("move a>b epoch 6 planned true pause 900ms", "send 2 confirm 6"))
	s.want(s.pass(500*ms), "")
}

func TestSourceLostWhileFrozenIsLookedForIfTheTargetIsSilent(t *testing.T) {
	s := pivoting(t)
	s.frame(1, frozenFrame(77))
	s.want(s.lost(1), "drop 1")
	s.want(s.pass(time.Second), "dial 3 b:1 attach")
	s.opened(3)
	s.want(s.frame(3, attachedFrame("b", 6)), lines(
		"move a>b epoch 6 planned false pause 1s",
		"attempt b:1 ok",
		"drop 2",
		"send 3 write w1 seq=1 try=3 prev=0 ack=1"))
}

func TestStaleEpochIsIgnored(t *testing.T) {
	s := attached(t)
	s.write("w")
	s.want(s.frame(1, replyFrame(1, 4, "old")), "")
	s.want(s.frame(1, pushFrame(1, 4)), "")
	s.want(s.frame(1, pivotFrame(7, "b", 4)), "")
	s.want(s.lost(1), "drop 1\ndial 2 b:1 attach")
	s.opened(2)
	s.want(s.frame(2, attachedFrame("b", 4)), "attempt b:1 stale_epoch\ndrop 2")
	s.want(s.pass(50*ms), "dial 3 c:1 attach")
	s.opened(3)
	s.want(s.frame(3, redirectFrame("a", 4)), "attempt c:1 not_owner\ndrop 3")
}

func TestPushesComeOnceAndInOrder(t *testing.T) {
	s := attached(t)
	s.want(s.frame(1, pushFrame(1, 5)), "push 1")
	s.want(s.frame(1, pushFrame(2, 5)), "push 2")
	s.want(s.frame(1, pushFrame(2, 5)), "")
	s.want(s.frame(1, pushFrame(1, 5)), "")
	s.c.gotPushed(s.now, 1)
	s.c.gotPushed(s.now, 2)
	// One acknowledgement stands for both, unless a request carries it sooner.
	s.want(s.pass(pushAckDelay), "send 1 pushes<=2 ack=1")
	s.frame(1, pushFrame(3, 5))
	s.c.gotPushed(s.now, 3)
	s.want(s.write("w"), "send 1 write w seq=1 try=1 prev=0 ack=1 pushes<=3")
	s.want(s.pass(pushAckDelay), "")
	// A push that the application has not had yet is not acknowledged, nor is it
	// taken twice.
	s.want(s.frame(1, pushFrame(4, 5)), "push 4")
	s.want(s.lost(1), "drop 1\ndial 2 b:1 attach pushes<=3")
	s.opened(2)
	s.frame(2, attachedFrame("b", 6))
	s.want(s.frame(2, pushFrame(4, 6)), "")
	s.want(s.frame(2, pushFrame(5, 6)), "push 5")
}

func TestRedirectIsFollowed(t *testing.T) {
	s := newScript(t, nil)
	s.want(s.start(), "dial 1 a:1 attach fresh")
	s.opened(1)
	s.want(s.frame(1, redirectFrame("c", 5)), "drop 1\ndial 2 c:1 attach fresh")
	s.opened(2)
	s.want(s.frame(2, attachedFrame("c", 5)), "attempt c:1 ok\nready")
}

func TestOwnerThatCannotBeDialledIsReachedThroughARelay(t *testing.T) {
	s := newScript(t, nil)
	s.start()
	s.opened(1)
	s.frame(1, redirectFrame("c", 5))
	s.want(s.undialled(2), lines("attempt c:1 unavailable", "drop 2", "dial 3 a:1 attach fresh relay=id-c"))
	s.opened(3)
	s.want(s.frame(3, attachedFrame("c", 5)), "attempt a:1 ok\nready")
}

func TestCircularRedirectsBackOff(t *testing.T) {
	s := newScript(t, nil)
	s.start()
	for i := range hopsMax {
		s.opened(i + 1)
		to := []string{"b", "a"}[i%2]
		s.want(s.frame(i+1, redirectFrame(to, 5)), lines("drop "+string(rune('1'+i)), "dial "+string(rune('2'+i))+" "+to+":1 attach fresh"))
	}
	s.opened(hopsMax + 1)
	s.want(s.frame(hopsMax+1, redirectFrame("b", 5)), lines("attempt a:1 not_owner", "drop 5"))
	if got := s.pass(time.Second); !strings.HasPrefix(got, "dial 6") {
		t.Fatalf("then: %s", got)
	}
}

func TestOwnerCrashed(t *testing.T) {
	s := attached(t)
	s.write("w")
	s.want(s.lost(1), "drop 1\ndial 2 b:1 attach")
	s.opened(2)
	// b still believes in a. It is not dialled, and not relayed to: asked again.
	s.want(s.frame(2, redirectFrame("a", 5)), "drop 2")
	s.want(s.pass(20*ms), "dial 3 c:1 attach")
	s.opened(3)
	s.want(s.frame(3, redirectFrame("b", 6)), "drop 3\ndial 4 b:1 attach")
	s.opened(4)
	s.want(s.frame(4, attachedFrame("b", 6)), lines(
		"move a>b epoch 6 planned false pause 20ms",
		"attempt b:1 ok",
		"send 4 write w seq=1 try=2 prev=0 ack=1"))
}

func TestPathToOwnerCutIsRelayedAfterAWhile(t *testing.T) {
	s := attached(t)
	s.write("w")
	s.lost(1)
	begin := s.now
	for s.now < begin+5*time.Second {
		a := s.c.hunt.attempt
		switch {
		case a == nil:
			s.pass(10 * ms)
		case a.relay:
			s.opened(a.id)
			s.want(s.frame(a.id, attachedFrame("a", 5)), lines("attempt "+a.addr+" ok", "send "+strconv.Itoa(a.id)+" write w seq=1 try=2 prev=0 ack=1"))
			if s.now-begin < time.Second {
				t.Errorf("relayed already after %v: a crashed owner's successor would have been missed", s.now-begin)
			}
			return
		case a.addr == "a:1":
			s.undialled(a.id)
		default:
			s.opened(a.id)
			s.frame(a.id, redirectFrame("a", 5))
		}
	}
	t.Fatal("never relayed")
}

func TestSilentOwner(t *testing.T) {
	s := attached(t)
	s.want(s.pass(time.Minute), "") // nothing is out: silence means nothing
	s.write("w")
	s.want(s.pass(999*ms), "")
	// The old stream is kept while another way is looked for.
	s.want(s.pass(ms), "dial 2 b:1 attach")
	s.opened(2)
	s.want(s.frame(2, redirectFrame("a", 5)), "drop 2\ndial 3 a:1 attach")
	s.opened(3)
	// Nothing comes back there either: the connection is not used again, and the
	// others are asked until they know better.
	s.want(s.pass(time.Second), lines("attempt a:1 unavailable", "drop 3 silent", "dial 4 b:1 attach relay=id-a"))
	s.opened(4)
	s.want(s.frame(4, byeFrame(wire.Code_UNAVAILABLE)), "attempt b:1 unavailable\ndrop 4")
	s.want(s.pass(20*ms), "dial 5 c:1 attach")
	s.opened(5)
	s.want(s.frame(5, attachedFrame("c", 6)), lines(
		"move a>c epoch 6 planned false pause 1.02s",
		"drop 1",
		"attempt c:1 ok",
		"send 5 write w seq=1 try=2 prev=0 ack=1"))
}

func TestSilentOwnerComesBack(t *testing.T) {
	s := attached(t)
	s.write("w")
	s.want(s.pass(time.Second), "dial 2 b:1 attach")
	s.opened(2)
	s.pass(10 * ms)
	s.want(s.frame(1, replyFrame(1, 5, "at last")), `answer w ok "at last"`)
	s.want(s.frame(2, byeFrame(wire.Code_RETRY)), "attempt b:1 retry\ndrop 2")
	s.want(s.pass(time.Minute), "")
	s.want(s.write("w2"), "send 1 write w2 seq=2 try=1 prev=1 ack=2")
}

func TestSlowHandlerIsProbedLessAndLess(t *testing.T) {
	s := attached(t)
	s.write("w")
	var probes []time.Duration
	begin := s.now
	for s.now < begin+30*time.Second {
		if got := s.pass(100 * ms); got == "" {
			continue
		}
		probes = append(probes, s.now-begin)
		id := s.c.hunt.attempt.id
		s.opened(id)
		s.frame(id, attachedFrame("a", 5))
	}
	if len(probes) < 4 || len(probes) > 6 {
		t.Errorf("a handler of 30 s was probed at %v", probes)
	}
	for _, p := range s.c.order {
		if p.settled {
			t.Error("the write is gone")
		}
	}
}

func TestNotOwnerReroutes(t *testing.T) {
	s := attached(t)
	s.write("w")
	s.want(s.frame(1, refusalFrame(1, 5, wire.Code_STALE_EPOCH, false)), "dial 2 b:1 attach")
	s.opened(2)
	s.want(s.frame(2, attachedFrame("b", 6)), lines(
		"move a>b epoch 6 planned false pause 0s",
		"drop 1",
		"attempt b:1 ok",
		"send 2 write w seq=1 try=2 prev=0 ack=1"))
}

func TestOpening(t *testing.T) {
	open := func(c *coreConfig) { c.open = &wire.OpenReq{} }
	s := newScript(t, open)
	s.want(s.start(), "dial 1 a:1 open")
	s.opened(1)
	s.want(s.frame(1, redirectFrame("c", 5)), "drop 1\ndial 2 c:1 open")
	// Where the owner cannot be reached, an attach can be relayed, an open not; and
	// that nobody knows the session yet is then no final answer.
	s.want(s.undialled(2), lines("attempt c:1 unavailable", "drop 2", "dial 3 a:1 attach fresh relay=id-c"))
	s.opened(3)
	s.want(s.frame(3, byeFrame(wire.Code_UNKNOWN_SESSION)), "attempt a:1 unknown_session\ndrop 3")
	s.want(s.pass(20*ms), "dial 4 b:1 open")
	s.opened(4)
	s.want(s.frame(4, attachedFrame("b", 5)), "attempt b:1 ok\nready")
	s.want(s.lost(4), "drop 4\ndial 5 a:1 attach")

	// Nor is it that a former session of the id has ended: only to an open.
	for _, code := range []wire.Code{wire.Code_SESSION_CLOSED, wire.Code_SESSION_EXPIRED} {
		s = newScript(t, open)
		s.start()
		s.opened(1)
		s.frame(1, redirectFrame("c", 5))
		s.undialled(2)
		s.opened(3)
		s.want(s.frame(3, byeFrame(code)), "attempt a:1 "+code.Label()+"\ndrop 3")
		s.want(s.pass(20*ms), "dial 4 b:1 open")
		s.opened(4)
		s.want(s.frame(4, byeFrame(code)), "drop 4\nend")
	}

	s = newScript(t, open)
	s.start()
	s.opened(1)
	s.want(s.frame(1, byeFrame(wire.Code_SESSION_EXISTS)), "drop 1\nend")

	s = newScript(t, func(c *coreConfig) { open(c); c.prefer = "c" })
	s.want(s.start(), "dial 1 c:1 open")
}

func TestRelayOnly(t *testing.T) {
	s := newScript(t, func(c *coreConfig) { c.relay = true })
	s.want(s.start(), "dial 1 a:1 attach fresh relay=")
	s.opened(1)
	s.want(s.frame(1, redirectFrame("c", 5)), "drop 1\ndial 2 a:1 attach fresh relay=id-c")
	s.opened(2)
	s.want(s.frame(2, attachedFrame("c", 5)), "attempt a:1 ok\nready")
	s.want(s.frame(2, pivotFrame(9, "b", 5)), "dial 3 a:1 attach relay=id-b migration=9 token=t")
	s.opened(3)
	s.want(s.frame(3, pivotedFrame("b", 6)), lines("move c>b epoch 6 planned true pause 0s", "drop 2", "send 3 confirm 6"))
}

// A client behind one address stays with it when the owner falls silent, though
// it has heard of other nodes.
func TestRelayOnlyClientStaysWithItsAddress(t *testing.T) {
	s := newScript(t, func(c *coreConfig) {
		c.relay = true
		c.book = newBook([]string{"a:1"}, 0)
		c.book.learn(testNode("b"), testNode("c"))
	})
	s.start()
	s.opened(1)
	s.frame(1, attachedFrame("b", 5))
	s.write("w")
	for range 40 {
		for line := range strings.SplitSeq(s.pass(100*ms), "\n") {
			if strings.HasPrefix(line, "dial") && !strings.Contains(line, " a:1 ") {
				t.Fatalf("the core did %q", line)
			}
		}
	}
}

func TestDetachAndClose(t *testing.T) {
	s := attached(t)
	s.write("w")
	s.c.leave(detaching)
	s.want(s.trace(), "send 1 detach")
	s.want(s.frame(1, byeFrame(wire.Code_OK)), "answer w not_attached\ndrop 1\nend")

	s = attached(t)
	s.c.leave(detaching)
	s.trace()
	s.want(s.lost(1), "drop 1\nend")

	// A close whose answer is lost is asked for again; that the session is gone
	// then is the answer.
	s = attached(t)
	s.c.leave(closing)
	s.want(s.trace(), "send 1 close")
	s.want(s.lost(1), "drop 1\ndial 2 b:1 attach")
	s.opened(2)
	s.want(s.frame(2, attachedFrame("b", 6)), lines("move a>b epoch 6 planned false pause 0s", "attempt b:1 ok", "send 2 close"))
	s.want(s.frame(2, byeFrame(wire.Code_UNKNOWN_SESSION)), "drop 2\nend")
	if s.c.ended != error(errClosed) {
		t.Errorf("ended as %v", s.c.ended)
	}
}

func TestDisplacedByOurselvesIsNoEnd(t *testing.T) {
	s := attached(t)
	s.write("w")
	s.want(s.pass(time.Second), "dial 2 b:1 attach")
	s.opened(2)
	s.want(s.frame(1, byeFrame(wire.Code_DISPLACED)), "drop 1")
	s.want(s.frame(2, attachedFrame("a", 5)), "attempt b:1 ok\nsend 2 write w seq=1 try=2 prev=0 ack=1")
}

func TestBook(t *testing.T) {
	b := newBook([]string{"lb:1"}, 0)
	b.learn(testNode("a"), testNode("b"), &wire.NodeInfo{Id: "no address"})
	seen := map[string]int{}
	for range 9 {
		a, fresh := b.pick(0)
		if !fresh {
			t.Fatal("nothing is suspected yet")
		}
		seen[a]++
	}
	if seen["lb:1"] != 3 || seen["a:1"] != 3 || seen["b:1"] != 3 {
		t.Errorf("not in turn: %v", seen)
	}
	b.suspect("a:1", 10)
	b.suspect("lb:1", 10)
	for range 5 {
		if a, _ := b.pick(9); a != "b:1" {
			t.Errorf("picked %s", a)
		}
	}
	if a, fresh := b.pick(9, "b:1"); fresh || a == "b:1" {
		t.Errorf("picked %s, fresh %v", a, fresh)
	}
	if b.suspected("a:1", 10) {
		t.Error("suspected for ever")
	}
	b.learn(&wire.NodeInfo{Id: "id-a", Name: "a", Host: "elsewhere", UserPort: 2})
	if got := b.find("a"); got != "elsewhere:2" {
		t.Errorf("a is at %q", got)
	}
}

// TestOneMisfitIsPassedOver: a node that does not belong with the client ends nothing
// while there are others; all of them do.
func TestOneMisfitIsPassedOver(t *testing.T) {
	foreign := wire.Errorf(wire.Code_NOT_AUTHORISED, "its certificate has run out")
	s := newScript(t, nil)
	s.want(s.start(), "dial 1 a:1 attach fresh")
	s.c.lost(s.now, 1, foreign, false)
	s.want(s.trace(), lines("attempt a:1 not_authorised", "drop 1", "dial 2 c:1 attach fresh"))
	s.opened(2)
	s.want(s.frame(2, byeFrame(wire.Code_WRONG_CLUSTER)), lines("attempt c:1 wrong_cluster", "drop 2", "dial 3 b:1 attach fresh"))
	s.c.lost(s.now, 3, foreign, false)
	s.want(s.trace(), lines("drop 3", "end"))

	// Where the client uses nobody but the given address, that counts.
	s = newScript(t, func(c *coreConfig) { c.relay = true })
	s.start()
	s.c.lost(s.now, 1, foreign, false)
	s.want(s.trace(), lines("drop 1", "end"))
}
