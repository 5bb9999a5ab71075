package main

import (
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// TestScaleIsMeasured is the bench of a million sessions in small.
func TestScaleIsMeasured(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three nodes")
	}
	t.Setenv(runAsBaton, "1")
	r := runBaton(nil, "", "bench", "--self", "--op", "scale", "--sessions", "200", "--conns", "4", "--clients", "4",
		"--duration", "500ms", "--profile", "local", "--json")
	if r.code != exitOK {
		t.Fatalf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	out := r.fields(t)
	many := out["many"].(map[string]any)
	if out["sessions"] != 200.0 || many["sessions"] != 200.0 || many["ops"].(float64) == 0 || many["errors"] != 0.0 {
		t.Errorf("not what was asked for: %s", r.stdout)
	}
	if out["heap_per_session"].(float64) == 0 || out["restart_us"].(float64) == 0 {
		t.Errorf("heap and restart were not measured: %s", r.stdout)
	}
}

func TestMetricOf(t *testing.T) {
	page := []byte("# TYPE go_x gauge\ngo_x_more 3\ngo_x 1.5e+06\n")
	if v, err := metricOf(page, "go_x"); err != nil || v != 1.5e6 {
		t.Errorf("%v, %v", v, err)
	}
	if v, err := metricOf(page, "go_y"); err == nil {
		t.Errorf("found %v", v)
	}
}

// TestMinutesAreKeptApart: what one minute was like is not hidden by the others.
func TestMinutesAreKeptApart(t *testing.T) {
	b := newBencher(benchFlags{})
	for minute, us := range []int64{1000, 0, 3000} {
		h := hdrhistogram.New(latencyMinUS, latencyMaxUS, latencyDigits)
		if us > 0 {
			_ = h.RecordValue(us)
		}
		b.merge(minute, h)
		if p := b.minutesP99(); minute == 0 && len(p) != 0 {
			t.Errorf("one minute has nothing to be compared with: %v", p)
		}
	}
	p := b.minutesP99()
	if len(p) != 3 || p[0] < 999 || p[0] > 1001 || p[1] != 0 || p[2] < 2990 || p[2] > 3010 {
		t.Errorf("%v", p)
	}
	if b.result(time.Minute).Ops != 2 {
		t.Errorf("%d in all", b.result(time.Minute).Ops)
	}
}
