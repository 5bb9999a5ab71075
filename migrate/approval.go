package migrate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/baton-cluster/baton/wire"
)

const (
	// ApprovalDefault is how long a move waits for an operator's confirmation.
	ApprovalDefault = 5 * time.Minute
	// ApprovalMin: below it nobody can have looked.
	ApprovalMin = time.Second
	// approvalsMax bounds the moves that wait for an operator: more than a person
	// can look through. One beyond it is refused with OVERLOADED.
	approvalsMax = 1024
	// RulesMax bounds a policy: the first rule that fits decides, one by one.
	RulesMax = 64
)

// Approval says which moves and jobs an operator is asked about before they
// begin. The zero value asks about none.
type Approval struct {
	Rules []Rule
	// Within is how long one waits for an operator; then it has failed with
	// CONFIRMATION_EXPIRED.
	Within time.Duration
}

// Rule decides about the moves and jobs that it fits. An empty condition fits
// all.
type Rule struct {
	Manual   bool // an operator is asked
	Reasons  []wire.Reason
	From, To uint32 // priorities, both included; 0 and 0: all
	By       string // the requester; with a * at its end, how that begins
}

// Asks reports whether an operator is asked. The first rule that fits decides;
// without one nobody is. An emergency waits for nobody.
func (a Approval) Asks(reason wire.Reason, priority uint32, by string) bool {
	if reason == wire.Reason_REASON_EMERGENCY {
		return false
	}
	if priority == 0 {
		priority = PriorityDefault
	}
	for _, r := range a.Rules {
		if r.fits(reason, priority, by) {
			return r.Manual
		}
	}
	return false
}

func (r Rule) fits(reason wire.Reason, priority uint32, by string) bool {
	head, prefix := strings.CutSuffix(r.By, "*")
	switch {
	case len(r.Reasons) > 0 && !slices.Contains(r.Reasons, reason):
		return false
	case r.To > 0 && (priority < r.From || priority > r.To):
		return false
	case prefix:
		return strings.HasPrefix(by, head)
	}
	return r.By == "" || r.By == by
}

// ParseRule reads a rule: "manual" or "auto", then any of reason=R[|R…],
// priority=N or N-N, and by=NAME or by=BEGINNING*.
func ParseRule(text string) (Rule, error) {
	var r Rule
	words := strings.Fields(text)
	if len(words) == 0 || words[0] != "manual" && words[0] != "auto" {
		return r, badRule(text, "it begins with manual or auto")
	}
	r.Manual = words[0] == "manual"
	for _, w := range words[1:] {
		key, value, ok := strings.Cut(w, "=")
		if !ok || value == "" {
			return r, badRule(text, "a condition is reason=…, priority=… or by=…")
		}
		switch key {
		case "reason":
			for _, name := range strings.Split(value, "|") {
				reason, known := wire.Reason_value["REASON_"+strings.ToUpper(name)]
				if !known || reason == 0 {
					return r, badRule(text, fmt.Sprintf("%q is no reason", name))
				}
				r.Reasons = append(r.Reasons, wire.Reason(reason))
			}
		case "priority":
			from, to, ranged := strings.Cut(value, "-")
			if !ranged {
				to = from
			}
			a, err1 := strconv.ParseUint(from, 10, 8)
			b, err2 := strconv.ParseUint(to, 10, 8)
			if err1 != nil || err2 != nil || a < 1 || b < a || b > PriorityMax {
				return r, badRule(text, fmt.Sprintf("a priority is 1 to %d, or two of them with a dash", PriorityMax))
			}
			r.From, r.To = uint32(a), uint32(b)
		case "by":
			r.By = value
		default:
			return r, badRule(text, fmt.Sprintf("%q is no condition: use reason, priority or by", key))
		}
	}
	return r, nil
}

func badRule(text, why string) *wire.Error {
	return wire.Errorf(wire.Code_BAD_REQUEST, "rule %q: %s", text, why)
}

// NewApproval reads a policy, all faults at once. within 0: ApprovalDefault.
func NewApproval(rules []string, within time.Duration) (Approval, error) {
	a := Approval{Within: within}
	var faults []string
	if within == 0 {
		a.Within = ApprovalDefault
	} else if within < ApprovalMin || within > DeadlineMax {
		faults = append(faults, fmt.Sprintf("a confirmation is waited for from %v to %v, not %v", ApprovalMin, DeadlineMax, within))
	}
	if len(rules) > RulesMax {
		faults = append(faults, fmt.Sprintf("there are at most %d rules, not %d", RulesMax, len(rules)))
	}
	for _, text := range rules {
		r, err := ParseRule(text)
		if err != nil {
			faults = append(faults, asError(err).Message)
		}
		a.Rules = append(a.Rules, r)
	}
	if len(faults) > 0 {
		return Approval{}, wire.Errorf(wire.Code_BAD_REQUEST, "%s", strings.Join(faults, "; "))
	}
	return a, nil
}
