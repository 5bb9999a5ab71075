package migrate

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/baton-cluster/baton/wire"
)

func TestRequestValidate(t *testing.T) {
	good := Request{Session: "s", Target: "n2", Reason: wire.Reason_REASON_ADMIN_REQUEST, Priority: 5, Deadline: time.Second, By: "ops"}
	if err := good.Validate(); err != nil {
		t.Errorf("a good request: %v", err)
	}
	if err := (&Request{Session: "s", Reason: wire.Reason_REASON_EMERGENCY}).Validate(); err != nil {
		t.Errorf("a minimal request: %v", err)
	}
	bad := Request{
		Session: "", Target: strings.Repeat("n", 200), Reason: 99, Priority: 6, Deadline: time.Millisecond, By: "a\nb",
	}
	err := bad.Validate()
	if !errors.Is(err, &wire.Error{Code: wire.Code_BAD_REQUEST}) {
		t.Fatalf("got %v", err)
	}
	for _, fault := range []string{"session:", "target:", "reason:", "priority:", "deadline:", "by:"} {
		if !strings.Contains(err.Error(), fault) {
			t.Errorf("%q is not named in %q", fault, err)
		}
	}
	for name, change := range map[string]func(*Request){
		"no reason":   func(r *Request) { r.Reason = wire.Reason_REASON_UNSPECIFIED },
		"late":        func(r *Request) { r.Deadline = DeadlineMax + 1 },
		"negative":    func(r *Request) { r.Deadline = -1 },
		"not UTF-8":   func(r *Request) { r.By = "\xff" },
		"long by":     func(r *Request) { r.By = strings.Repeat("b", ByBytesMax+1) },
		"odd target":  func(r *Request) { r.Target = "\x00" },
		"bad session": func(r *Request) { r.Session = "\x7f" },
	} {
		r := good
		change(&r)
		if wire.CodeOf(r.Validate()) != wire.Code_BAD_REQUEST {
			t.Errorf("%s: %v", name, r.Validate())
		}
	}
}
