package rpcnet

import (
	"strconv"
	"testing"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// listening is foretold with a client that listens; lives says which of the nodes
// at the ends of routes live.
func listening(t *testing.T, spread time.Duration, lives map[int]bool) *script {
	t.Helper()
	return foretold(t, spread, func(c *coreConfig) { c.hears = func(route int) bool { return lives[route] } })
}

// A node that is dead is left as soon as it is silent.
func TestDeadOwnerIsLeft(t *testing.T) {
	s := listening(t, 0, map[int]bool{})
	s.write("w1")
	s.want(s.pass(249*ms), "")
	s.want(s.pass(ms), "listen 1\nsend 1 pushes<=0 ack=1")
	s.want(s.pass(250*ms), "dial 2 b:1 attach standby")
	s.want(s.undialled(2), "attempt b:1 unavailable\ndrop 2")
	s.want(s.pass(500*ms), "dial 3 b:1 attach standby")
}

// One that lives is slow, and is not left for a while.
func TestSlowOwnerIsNotLeft(t *testing.T) {
	s := listening(t, 0, map[int]bool{1: true})
	s.write("w1")
	s.want(s.pass(time.Second+499*ms), "listen 1\nsend 1 pushes<=0 ack=1")
	s.want(s.pass(ms), "listen 1\nsend 1 pushes<=0 ack=1")
	s.want(s.frame(1, replyFrame(1, 5, "late")), `answer w1 ok "late"`)
	s.write("w2") // and if it never answers, it is left in the end
	s.want(s.pass(7*time.Second), lines(
		"listen 1", "send 1 pushes<=0 ack=2", "listen 1", "send 1 pushes<=0 ack=2", "listen 1", "send 1 pushes<=0 ack=2", "dial 2 b:1 attach standby"))
}

// Who slept goes by what it hears when it is awake, not by what it has missed.
func TestClientThatSleptListensFirst(t *testing.T) {
	lives := map[int]bool{}
	s := listening(t, 0, lives)
	s.write("w1")
	s.now += 10 * time.Second
	s.c.tick(s.now)
	s.want(s.trace(), "listen 1\nsend 1 pushes<=0 ack=1")
	lives[1] = true
	s.want(s.pass(time.Second), "listen 1\nsend 1 pushes<=0 ack=1")
	s.want(s.frame(1, replyFrame(1, 5, "done")), `answer w1 ok "done"`)
}

// Through a relay it is the node behind that may be gone, whatever is heard.
func TestRelayTellsNothingOfTheOwner(t *testing.T) {
	s := listening(t, 0, map[int]bool{1: true})
	s.c.serving.relay = true
	s.write("w1")
	s.want(s.pass(999*ms), "dial 2 b:1 attach standby")
}

// An attempt that a living node is slow to answer goes on, and its connection is
// kept; one that slept is judged when it is awake.
func TestSlowAttemptGoesOn(t *testing.T) {
	lives := map[int]bool{}
	s := listening(t, 0, lives)
	s.write("w1")
	s.want(s.lost(1), "drop 1\ndial 2 b:1 attach standby")
	s.opened(2)
	lives[2] = true
	s.want(s.pass(5*time.Second), "listen 2\nlisten 2")
	lives[2] = false
	s.want(s.pass(3999*ms), "")
	s.want(s.pass(ms), "attempt b:1 unavailable\ndrop 2 silent\ndial 3 c:1 attach")
	s.opened(3)
	s.now += 10 * time.Second
	s.c.tick(s.now)
	s.want(s.trace(), "listen 3")
	s.want(s.pass(4*time.Second), "attempt c:1 unavailable\ndrop 3 silent\ndial 4 b:1 attach standby")
}

// Long round trips are no silence.
func TestSilenceIsLongerThanRoundTrips(t *testing.T) {
	s := foretold(t, 0, func(c *coreConfig) { c.rtt = func(int) time.Duration { return 600 * ms } })
	s.write("w1")
	s.want(s.pass(1199*ms), "")
	s.want(s.pass(ms), "dial 2 b:1 attach standby")
	s.want(s.undialled(2), "attempt b:1 unavailable\ndrop 2")
	s.want(s.pass(1199*ms), "")
	s.want(s.pass(ms), "dial 3 b:1 attach standby")
	s.opened(3)
	s.want(s.pass(2399*ms), "")
	s.want(s.pass(ms), "attempt b:1 unavailable\ndrop 3 silent\ndial 4 c:1 attach")
}

// A crowd is turned away again and again by a node that is well, and goes nowhere
// else: over the longer, the more they are.
func TestCrowdComesAgainToTheSuccessor(t *testing.T) {
	s := foretold(t, 20*time.Second, nil)
	s.want(s.lost(1), "drop 1\ndial 2 b:1 attach standby")
	waits := []time.Duration{}
	for route := 2; route < 12; route++ {
		at := s.now
		s.c.lost(s.now, route, wire.Errorf(wire.Code_OVERLOADED, "refused"), false)
		s.want(s.trace(), lines("attempt b:1 overloaded", "drop "+strconv.Itoa(route)))
		for s.trace() == "" {
			s.now = s.c.wake()
			s.c.tick(s.now)
			if len(s.c.actions) > 0 {
				s.want(s.trace(), "dial "+strconv.Itoa(route+1)+" b:1 attach standby")
				break
			}
		}
		waits = append(waits, s.now-at)
	}
	if last := waits[len(waits)-1]; last != 5*time.Second || waits[0] != 50*ms {
		t.Errorf("it came again after %v", waits)
	}
}
