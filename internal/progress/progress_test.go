package progress

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestProgress(t *testing.T) {
	tests := []struct {
		name  string
		width int
		takes time.Duration
		want  string
	}{
		{name: "short work is silent", takes: 1900 * time.Millisecond},
		{
			name:  "elsewhere a line now and then",
			takes: 23 * time.Second,
			want: "set-up: download x: 0 of 8 MB, 2 s\n" +
				"set-up: download x: 4 of 8 MB, 12 s\n" +
				"set-up: download x: 8 of 8 MB, 22 s\n" +
				"set-up: download x: done, 8 MB in 23.0 s\n",
		},
		{
			name:  "on a terminal one line, redrawn and cut to its width",
			width: 30,
			takes: 2400 * time.Millisecond,
			want: "set-up: download x: 0 of 8 MB" +
				"\r\x1b[Kset-up: download x: 0 of 8 MB" +
				"\r\x1b[Kset-up: download x: done, 8 MB in 2.4 s\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				p := &Progress{out: &out, who: "set-up", width: tt.width}
				stop := p.Start()
				done := int64(-4_000_000)
				task := p.Begin("download x", 8_000_000, func() int64 {
					if tt.width == 0 {
						done += 4_000_000
						return done
					}
					return 0
				})
				<-time.After(tt.takes)
				p.End(task)
				stop()
				if diff := cmp.Diff(tt.want, out.String()); diff != "" {
					t.Errorf("output (-want +got):\n%s", diff)
				}
			})
		})
	}
}
