//! `frostline check`: is the configuration sound?

use std::process::ExitCode;

use super::{Context, Format, coverage};

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// Print which clause of its profiles is watched by which rule, for each unit.
    #[arg(long)]
    coverage: bool,
    /// How the summary is printed.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[expect(clippy::print_stdout, reason = "the result of a command goes to stdout")]
pub(crate) fn run(arguments: &CheckArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let loaded = context.load()?;
    if arguments.coverage {
        let units = coverage::of(&loaded.judgement);
        match arguments.format {
            Format::Json => println!("{}", serde_json::json!({ "problems": [], "units": units })),
            Format::Table => print!("{}", coverage::as_text(&units)),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (settings, judgement) = (&loaded.settings, &loaded.judgement);
    let registry = &judgement.registry;
    let counts = [
        ("routes", judgement.routes.len()),
        ("rules", judgement.rules.len()),
        ("profiles", registry.profiles.len()),
        ("operators", registry.operators.len()),
        ("units", registry.units.len()),
        ("sensors", registry.sensors.values().map(|sensors| sensors.len()).sum()),
        ("consignments", registry.consignments.values().map(Vec::len).sum()),
    ];
    match arguments.format {
        Format::Json => {
            let counts: serde_json::Map<String, serde_json::Value> =
                counts.iter().map(|(name, count)| ((*name).to_owned(), (*count).into())).collect();
            println!("{}", serde_json::json!({ "problems": [], "counts": counts }));
        }
        Format::Table => {
            println!("{} is sound", context.config_dir.display());
            for (name, count) in counts {
                println!("  {name:<14}{count}");
            }
            println!("  broker        {} as `{}`", settings.mqtt.url, settings.mqtt.client_id);
            match &settings.influxdb2 {
                Some(influx) => println!("  series        {} bucket {}", influx.url, influx.bucket),
                None => println!("  series        embedded"),
            }
            println!("  data          {}", settings.data_dir.display());
            println!("  http          {}", settings.http_listen);
        }
    }
    Ok(ExitCode::SUCCESS)
}
