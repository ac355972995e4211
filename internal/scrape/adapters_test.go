package scrape

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAdaptersOf(t *testing.T) {
	const series = "vllm:lora_requests_info"
	tests := []struct {
		name, page string
		want       Adapters
	}{
		{"a real page: the latest line has none at work", string(page(t, "vllm-0.32.txt")), Adapters{Most: 2}},
		{"no series", string(page(t, "vllm.txt")), Adapters{}},
		{
			"the latest counts", series + `{max_lora="4",running_lora_adapters="a,b",waiting_lora_adapters="c"} 1.7e9` + "\n" +
				series + `{max_lora="4",running_lora_adapters="d",waiting_lora_adapters=""} 1.6e9`,
			Adapters{4, []string{"a", "b"}, []string{"c"}},
		},
		{"names that come twice", series + `{running_lora_adapters="b,a,b",max_lora="2"} 1`, Adapters{2, []string{"a", "b"}, nil}},
		{
			"labels whose names end alike", series + `{not_max_lora="9",not_running_lora_adapters="z",max_lora="2",running_lora_adapters="a"} 1`,
			Adapters{2, []string{"a"}, nil},
		},
		{"no number", series + `{max_lora="x",running_lora_adapters="a"} 1` + "\n" + series + `{max_lora="2"} NaN`, Adapters{}},
		{"labels without end, other names", series + `{max_lora="2"` + "\nx" + series + `{max_lora="3"} 1`, Adapters{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, vllm.AdaptersOf([]byte(tt.page))); diff != "" {
				t.Errorf("AdaptersOf() (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzAdaptersOf(f *testing.F) {
	f.Add(page(f, "vllm-0.32.txt"))
	f.Add([]byte(`vllm:lora_requests_info{max_lora="4",running_lora_adapters="a,b",waiting_lora_adapters="c"} 1.7e9`))
	f.Fuzz(func(t *testing.T, page []byte) {
		if a := vllm.AdaptersOf(page); a.Most < 0 || a.Most > mostLoaded || len(a.Running) > mostAdapters {
			t.Errorf("%+v", a)
		}
	})
}
