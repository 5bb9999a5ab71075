package store

import (
	"strings"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// A job that needs confirmation is paused until it has it: resuming it is none,
// and one that comes too late counts for nothing. Log time goes on meanwhile.
func TestJobConfirmation(t *testing.T) {
	for _, late := range []bool{false, true} {
		h := newHarness(t)
		h.open("a", "w1")
		c := startDrainCmd("w1", "n")
		c.GetStartJob().ConfirmByUs = h.time + 10*second
		j := h.ok(c).Job
		if j.State != wire.JobState_JOB_STATE_PAUSED || j.ConfirmByUs != h.time+10*second {
			t.Fatalf("job %v", j)
		}
		if us, ok := h.s.NextDeadline(); !ok || us != j.ConfirmByUs {
			t.Errorf("the next deadline is %d, %v", us, ok)
		}
		h.refuse(wire.Code_CONFIRMATION_NEEDED, updateJobCmd(j.Id, running))
		confirm := updateJobCmd(j.Id, 0)
		confirm.GetUpdateJob().Confirm = true
		if late {
			h.time += 10 * second
			h.refuse(wire.Code_CONFIRMATION_EXPIRED, confirm)
			if j = h.ok(endJobCmd(j.Id, failedState)).Job; j.ConfirmByUs != 0 {
				t.Errorf("ended: %v", j)
			}
			continue
		}
		if j = h.ok(confirm).Job; j.State != running || j.ConfirmByUs != 0 || j.ConfirmedBy != "operator" {
			t.Errorf("confirmed: %v", j)
		}
		h.duplicate(confirm)
	}
}

// Metadata are bounded, and their order is fixed: two replicas must not differ.
func TestMetadataIsChecked(t *testing.T) {
	long := strings.Repeat("x", 300)
	many := make([]*wire.Label, wire.MetadataMax+1)
	for i := range many {
		many[i] = &wire.Label{Key: string(rune('a' + i))}
	}
	for name, list := range map[string][]*wire.Label{
		"no key":    {{Value: "v"}},
		"long key":  {{Key: long}},
		"long":      {{Key: "k", Value: long}},
		"twice":     {{Key: "k"}, {Key: "k"}},
		"unordered": {{Key: "l"}, {Key: "k"}},
		"not text":  {{Key: "k", Value: "\xff"}},
		"too many":  many,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.open("a", "w1")
			c := h.beginCmd("a", "w2", "n")
			c.GetBegin().Metadata = list
			h.refuse(wire.Code_BAD_REQUEST, c)
			c.GetBegin().Metadata = many[:wire.MetadataMax]
			if m := h.ok(c).Migration; len(m.Metadata) != wire.MetadataMax {
				t.Errorf("on record: %v", m)
			}
		})
	}
}
