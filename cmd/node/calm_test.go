package main

import (
	"slices"
	"testing"
)

func TestCalmEnv(t *testing.T) {
	for _, c := range []struct {
		name      string
		env, want []string
		calm      bool
	}{
		{"nothing set", []string{"A=1"}, []string{"A=1", "GODEBUG=" + calmSetting}, true},
		{"empty", []string{"GODEBUG=", "A=1"}, []string{"GODEBUG=" + calmSetting, "A=1"}, true},
		{"other settings stay", []string{"GODEBUG=madvdontneed=1"}, []string{"GODEBUG=" + calmSetting + ",madvdontneed=1"}, true},
		{"the operator's trace stays", []string{"GODEBUG=schedtrace=1000"}, []string{"GODEBUG=schedtrace=1000"}, false},
		{"once is enough", []string{"GODEBUG=" + calmSetting}, []string{"GODEBUG=" + calmSetting}, false},
	} {
		before := slices.Clone(c.env)
		got, calm := calmEnv(c.env)
		if !slices.Equal(got, c.want) || calm != c.calm {
			t.Errorf("%s: %q, %v; want %q, %v", c.name, got, calm, c.want, c.calm)
		}
		if !slices.Equal(c.env, before) {
			t.Errorf("%s: the environment that was given changed to %q", c.name, c.env)
		}
	}
}
