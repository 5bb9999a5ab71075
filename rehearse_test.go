package baton_test

import (
	"testing"

	"github.com/baton-cluster/baton"
)

func TestRehearseToken(t *testing.T) {
	steps := baton.RehearseToken()
	if len(steps) < 18 {
		t.Errorf("%d steps", len(steps))
	}
	for _, s := range steps {
		if !s.OK {
			t.Errorf("%s: %s", s.Name, s.Detail)
		}
	}
}

func TestMeasuredParts(t *testing.T) {
	for _, part := range []string{"initiate", "token", "snapshot"} {
		do, err := baton.MeasuredPart(part)
		must(t, err)
		must(t, do())
	}
	if _, err := baton.MeasuredPart("dance"); err == nil {
		t.Error("an unknown part was measured")
	}
}

// BenchmarkMigrationPart has the parts that `bench --op` measures.
func BenchmarkMigrationPart(b *testing.B) {
	for _, part := range []string{"initiate", "token", "snapshot"} {
		b.Run(part, func(b *testing.B) {
			do, err := baton.MeasuredPart(part)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if err := do(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
