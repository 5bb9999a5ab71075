package wire

import "testing"

func TestPauseIndex(t *testing.T) {
	last := uint32(0)
	for us := uint64(0); us < 1<<20; us++ {
		i := PauseIndex(us)
		if i != last && i != last+1 {
			t.Fatalf("%d µs is in bucket %d, the one before in %d", us, i, last)
		}
		last = i
		if hi := PauseBound(i); hi < us || hi > us+us/8 {
			t.Fatalf("%d µs: bucket %d reaches to %d", us, i, hi)
		}
	}
	for _, us := range []uint64{1<<63 - 1, 1 << 63, 1<<64 - 1} {
		if hi := PauseBound(PauseIndex(us)); hi < us {
			t.Errorf("%d µs: its bucket ends at %d", us, hi)
		}
	}
}

func TestPauseQuantile(t *testing.T) {
	j := &Job{}
	if PauseQuantile(j, 0.99) != 0 {
		t.Error("a quantile of nothing")
	}
	j.Pauses = []*PauseBucket{{Index: PauseIndex(10), Count: 98}, {Index: PauseIndex(5000), Count: 2}}
	j.PauseMaxUs = 5000
	if p := PauseQuantile(j, 0.5); p != 10 {
		t.Errorf("p50 %d", p)
	}
	if p := PauseQuantile(j, 0.99); p != 5000 {
		t.Errorf("p99 %d", p)
	}
	if p := PauseQuantile(j, 1); p != 5000 {
		t.Errorf("max %d", p)
	}
}
