package rpcnet

import (
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// TestAckWanted: the session's reply cache is full, and this client, which asks
// nothing, is asked what it has received.
func TestAckWanted(t *testing.T) {
	wanted := &wire.ServerFrame{Kind: &wire.ServerFrame_AckWanted{AckWanted: &wire.AckWanted{}}}
	s := attached(t)
	s.write("w1")
	s.write("w2")
	s.want(s.frame(1, replyFrame(1, 5, "x")), `answer w1 ok "x"`)
	s.want(s.frame(1, wanted), "send 1 pushes<=0 ack=2")
	s.want(s.frame(1, replyFrame(2, 5, "y")), `answer w2 ok "y"`)
	s.want(s.frame(1, wanted), "send 1 pushes<=0 ack=3")
	s.want(s.frame(1, frozenFrame(9)), "")
	s.want(s.frame(1, wanted), "") // the next owner asks again if it must
}

// TestQueriesAcknowledgeNoPushes: the owner takes no acknowledgement from a query, and
// what was said on a stream that broke may be lost.
func TestQueriesAcknowledgeNoPushes(t *testing.T) {
	s := attached(t)
	s.frame(1, pushFrame(1, 5))
	s.c.gotPushed(s.now, 1)
	s.want(s.read("r"), "send 1 read r seq=1 try=1 prev=0 ack=1 pushes<=1")
	s.want(s.pass(pushAckDelay), "send 1 pushes<=1 ack=1")
	s.want(s.lost(1), "drop 1\ndial 2 b:1 attach pushes<=1")
	s.opened(2)
	s.frame(2, attachedFrame("b", 6))
	s.want(s.pass(pushAckDelay), "send 2 pushes<=1 ack=1")

	// Nor from a write that it answers from its window.
	s = attached(t)
	s.write("w1")
	s.frame(1, pushFrame(1, 5))
	s.c.gotPushed(s.now, 1)
	s.lost(1)
	s.opened(2)
	s.want(s.frame(2, attachedFrame("b", 6)), lines(
		"move a>b epoch 6 planned false pause 0s", "attempt b:1 ok", "send 2 write w1 seq=1 try=2 prev=0 ack=1 pushes<=1"))
	s.want(s.pass(pushAckDelay), "send 2 pushes<=1 ack=1")
}
