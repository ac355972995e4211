package program

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestOutlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, d := range []time.Duration{0, time.Second} {
			ctx, cancel := context.WithCancel(t.Context())
			longer, end := Outlive(ctx, d)
			began := time.Now()
			cancel()
			<-longer.Done()
			if got := time.Since(began); got != d {
				t.Errorf("Outlive(%s) ends %s after its parent", d, got)
			}
			end()
		}
		longer, end := Outlive(t.Context(), time.Hour)
		end()
		<-longer.Done()
	})
}
