package cluster

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/baton-cluster/baton/wire"
)

func locate(session string) *wire.Command {
	return &wire.Command{Kind: &wire.Command_Locate{Locate: &wire.Locate{Session: session}}}
}

// TestQueueKeepsItsPromises throws random outcomes at the queue and checks, for
// each group: its commands are answered once, in order, by their own results;
// batches keep to the limits; and what is charged is given back.
func TestQueueKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q queue
		groups := rapid.IntRange(1, 12).Draw(t, "groups")
		finished := map[string]string{} // group → how it ended
		for i := range groups {
			name := fmt.Sprint(i)
			var cmds []*wire.Command
			for j := range rapid.IntRange(1, 40).Draw(t, "commands") {
				size := rapid.SampledFrom([]int{0, 100, 40 << 10, 200 << 10, 300 << 10}).Draw(t, "size")
				c := locate(fmt.Sprintf("%d/%d", i, j))
				if size > 0 {
					c = &wire.Command{Kind: &wire.Command_Write{Write: &wire.Write{
						Session: fmt.Sprintf("%d/%d", i, j), Changes: []*wire.Change{{Key: "k", Value: make([]byte, size)}},
					}}}
				}
				cmds = append(cmds, c)
			}
			g, err := newGroup(cmds, func(res []*wire.Result, err error) {
				if finished[name] != "" {
					t.Fatalf("group %s ends twice", name)
				}
				finished[name] = "failed"
				if err == nil {
					finished[name] = "answered"
					for j, r := range res {
						if string(r.GetReply().GetPayload()) != fmt.Sprintf("%s/%d", name, j) {
							t.Fatalf("group %s, command %d got the result of %s", name, j, r.GetReply().GetPayload())
						}
					}
					if len(res) != len(cmds) {
						t.Fatalf("group %s: %d results", name, len(res))
					}
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			g.forwarded = rapid.Bool().Draw(t, "forwarded")
			if err := q.add(g); err != nil {
				t.Fatal(err)
			}
		}
		var flying []*batch
		for steps := 0; !q.empty() || len(flying) > 0; steps++ {
			if !q.empty() && len(flying) < 2 {
				b := q.next()
				checkBatch(t, b)
				flying = append(flying, b)
				continue
			}
			i := rapid.IntRange(0, len(flying)-1).Draw(t, "which")
			b := flying[i]
			flying = append(flying[:i], flying[i+1:]...)
			outcome := rapid.IntRange(0, 9).Draw(t, "outcome")
			switch {
			case outcome == 0 && steps < 200:
				finish(q.requeue(b), errNotLeader(""))
			case outcome == 1 && steps < 200:
				finish(q.refuse(b), wire.Errorf(wire.Code_BAD_REQUEST, "no"))
			case outcome == 2 && steps < 200:
				finish(q.takeForwarded(), errNotLeader(""))
				flying = append(flying, b)
			default:
				finish(q.settle(b, echo(b)), nil)
			}
		}
		if len(finished) != groups || q.commands != 0 || q.bytes != 0 || q.waiting != 0 || q.waitingBytes != 0 {
			t.Fatalf("%d of %d groups ended; %d commands, %d bytes are still charged", len(finished), groups, q.commands, q.bytes)
		}
	})
}

func checkBatch(t *rapid.T, b *batch) {
	if b.commands > wire.EntryCommandsMax || (b.bytes > wire.EntryBytesMax && b.commands > 1) || b.commands != len(b.list()) {
		t.Fatalf("a batch of %d commands (%d listed) and %d bytes", b.commands, len(b.list()), b.bytes)
	}
	seen := map[*group]bool{}
	for _, u := range b.units {
		if seen[u.g] {
			t.Fatal("two units of one group in a batch")
		}
		seen[u.g] = true
	}
}

// echo answers each command with its session's name.
func echo(b *batch) []*wire.Result {
	var out []*wire.Result
	for _, c := range b.list() {
		out = append(out, &wire.Result{Reply: &wire.Reply{Payload: []byte(c.GetLocate().GetSession() + c.GetWrite().GetSession())}})
	}
	return out
}

func TestQueueIsBounded(t *testing.T) {
	var q queue
	one := func() error {
		g, err := newGroup([]*wire.Command{locate("s")}, func([]*wire.Result, error) {})
		if err != nil {
			t.Fatal(err)
		}
		return q.add(g)
	}
	for range PendingCommandsMax {
		if err := one(); err != nil {
			t.Fatal(err)
		}
	}
	if err := one(); wire.CodeOf(err) != wire.Code_OVERLOADED {
		t.Errorf("%v", err)
	}
	b := q.next()
	if err := one(); wire.CodeOf(err) != wire.Code_OVERLOADED {
		t.Errorf("with a batch under way: %v", err)
	}
	q.settle(b, echo(b))
	if err := one(); err != nil {
		t.Errorf("after a batch: %v", err)
	}
}

// TestRefusedBatchSparesItsNeighbours: one command that the leader cannot read
// fails its own group only.
func TestRefusedBatchSparesItsNeighbours(t *testing.T) {
	var q queue
	ended := map[string]error{}
	for _, name := range []string{"a", "bad", "c"} {
		g, err := newGroup([]*wire.Command{locate(name)}, func(_ []*wire.Result, err error) { ended[name] = err })
		if err != nil {
			t.Fatal(err)
		}
		if err := q.add(g); err != nil {
			t.Fatal(err)
		}
	}
	for !q.empty() {
		b := q.next()
		bad := false
		for _, c := range b.list() {
			bad = bad || c.GetLocate().GetSession() == "bad"
		}
		if bad {
			finish(q.refuse(b), wire.Errorf(wire.Code_BAD_REQUEST, "bad"))
		} else {
			finish(q.settle(b, echo(b)), nil)
		}
	}
	if ended["a"] != nil || ended["c"] != nil || wire.CodeOf(ended["bad"]) != wire.Code_BAD_REQUEST || len(ended) != 3 {
		t.Errorf("%v", ended)
	}
}
